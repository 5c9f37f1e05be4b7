"""hesspec structure: tables on the terminal, one file, and the page that shows it."""

from hesspec.spectra.record import load

STRUCTURE = ("structure", "small_cnn", "--data", "digits", "--samples-per-class", "3", "--steps", "20")


def test_it_explains_and_keeps_a_file(hesspec, here):
    result = hesspec(*STRUCTURE)
    assert result.exit_code == 0, result.stderr
    for text in (
        "Parts of G, 10 classes",
        "G_class",
        "G_within",
        "Largest eigenvalues of Hess:",
        "Largest eigenvalues of G:",
    ):
        assert text in result.stdout
    assert "The Hessian without the means" in result.stdout
    file = here / "spectra" / "initialisation-train-ClassStructure.nc"
    assert "Saved spectra/initialisation-train-ClassStructure.nc" in result.stdout
    found = load(file)
    assert found.classes == 10
    assert found.gram.shape == (110, 110)
    assert found.attributes["network"] == "small_cnn"
    assert found.attributes["samples_per_class"] == 3
    assert (here / "spectra" / "initialisation-train-GaussNewton.nc").is_file()
    report = hesspec("report", "spectra")
    assert report.exit_code == 0, report.stderr
    assert "Class structure" in (here / "spectra" / "report.html").read_text(encoding="utf-8")
    again = hesspec(*STRUCTURE)
    assert again.exit_code == 0, again.stderr
    assert "Already measured: spectra/initialisation-train-ClassStructure.nc" in again.stderr
    assert again.stdout == result.stdout[: result.stdout.index("Saved")]
    other = hesspec(*STRUCTURE[:-1], "12")
    assert other.exit_code == 1
    assert "its --steps was 20, where it is 12 now" in other.stderr


def test_without_cross_class_means_and_for_one_matrix(hesspec, here):
    result = hesspec(*STRUCTURE, "--no-cross", "--matrix", "g", "--out", "few")
    assert result.exit_code == 0, result.stderr
    found = load(here / "few" / "initialisation-train-ClassStructure.nc")
    assert found.gram.shape == (10, 10)
    assert set(found.outlier_matrix) <= {"GaussNewton"}
    assert not found.knockout_edges.size


def test_a_part_of_g_is_measured_by_name(hesspec, here):
    options = ("--samples-per-class", "2", "--steps", "12")
    result = hesspec("measure", "small_cnn", "--data", "digits", *options, "--matrix", "g-class")
    assert result.exit_code == 0, result.stderr
    assert "G_class" in result.stdout
    assert (here / "spectra" / "initialisation-train-GaussNewtonClass.nc").is_file()


def test_what_cannot_be_explained_is_said(hesspec):
    result = hesspec(*STRUCTURE, "--matrix", "g-class")
    assert result.exit_code == 1
    assert "GaussNewtonClass" in result.stderr
