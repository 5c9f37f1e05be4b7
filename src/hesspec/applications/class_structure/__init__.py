"""Class structure of the Gauss-Newton matrix, and the outliers that it explains."""
