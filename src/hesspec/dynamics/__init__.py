"""How spectra move: outliers followed through training and sample size, power laws, Marchenko-Pastur."""
