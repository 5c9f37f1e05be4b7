"""The power law of transferred data: published numbers, exact data, refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from saved_results import check_saved

import hesspec
from hesspec.applications.transfer.law import earned_transfer_law

TEXT = hesspec.TransferLaw.of(1.9e4, 0.18, 0.38, unit="characters")
MIXTURE = hesspec.TransferLaw.of(2.1e5, 0.096, 0.38, unit="characters")
SIZES, PARAMETERS = np.repeat([1e5, 1e6, 1e7], 4), np.tile([1e6, 1e7, 1e8, 1e9], 3)


def noisy(seed: int, sigma: float = 0.1):
    exact = TEXT.transferred(SIZES, PARAMETERS)
    return exact * np.exp(sigma * np.random.default_rng(seed).normal(size=exact.size))


def test_published_coefficients_give_the_published_numbers() -> None:
    # Coefficients are published to two digits, hence 5%; our own numbers are those of these coefficients.
    for law, value, paper in ((TEXT, 3.557e8, 3.7e8), (MIXTURE, 3.932e9, 4.1e9)):
        found = float(law.transferred(1, 1.75e11))
        assert found == pytest.approx(value, rel=5e-4)
        assert found == pytest.approx(paper, rel=0.05)
    for law, factor, paper in ((TEXT, 2.7918, 2.8), (MIXTURE, 1.7290, 1.7)):
        found = float(law.transferred(3e7, 1e8) / law.transferred(1e5, 1e8))
        assert found == pytest.approx(factor, rel=5e-5)
        assert found == pytest.approx(paper, rel=0.05)
    assert float(TEXT.transferred(1e6, 1e8) / TEXT.transferred(1e5, 1e8)) == pytest.approx(1.51356, rel=1e-5)
    assert float(TEXT.transferred(1e5, 1e9) / TEXT.transferred(1e5, 1e8)) == pytest.approx(2.39883, rel=1e-5)
    assert float(TEXT.transferred(1e7, 1e8) / TEXT.transferred(1e5, 1e8)) == pytest.approx(2.29087, rel=1e-5)
    assert float(TEXT.transferred(3e5, 4e7)) == pytest.approx(1.4237e8, rel=5e-5)
    assert float(TEXT.multiplier(3e5, 4e7)) == pytest.approx(1 + 474.6, abs=0.05)


def test_half_of_the_effective_data_is_transferred_at_n_star() -> None:
    sizes = np.array([1e5, 1e6, 1e7])
    star = TEXT.n_star(sizes)
    assert star == pytest.approx([0.3385289, 48.69569, 7004.63098], rel=1e-6)
    assert TEXT.transferred(sizes, star) == pytest.approx(sizes, rel=1e-12)
    assert TEXT.fraction(sizes, star) == pytest.approx(0.5, rel=1e-12)
    # Appendix C: the share is 1 / (1 + (N*/N)^beta).
    count = 1e4
    assert TEXT.fraction(sizes, count) == pytest.approx(1 / (1 + (star / count) ** 0.38), rel=1e-12)
    assert TEXT.multiplier(sizes, count) == pytest.approx(1 / (1 - TEXT.fraction(sizes, count)), rel=1e-12)


@pytest.mark.parametrize("method", ["joint", "fits"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_exact_data_give_the_law_back(method: str, dtype: type) -> None:
    exact = TEXT.transferred(SIZES, PARAMETERS).astype(dtype)
    law = hesspec.fit_transfer_law(SIZES, PARAMETERS, exact, method=method)
    close = 1e-10 if dtype is np.float64 else 1e-6
    for name, value in (("alpha", 0.18), ("beta", 0.38), ("k", 1.9e4)):
        found = getattr(law, name)
        assert found.value == pytest.approx(value, rel=close * (20 if name == "k" else 1))
        assert found.lower <= found.value <= found.upper
        assert found.upper - found.lower < 1e3 * close * value
    assert law.n_star(1e6) == pytest.approx(48.69569, rel=1e-4)
    assert law.left_out == 0
    assert law.r_squared == pytest.approx(1, abs=1e-9)


def test_both_fits_agree_if_all_d_f_have_the_same_n_and_differ_otherwise() -> None:
    found = noisy(1)
    joint, fits = (hesspec.fit_transfer_law(SIZES, PARAMETERS, found, method=m) for m in ("joint", "fits"))
    assert joint.coefficients == pytest.approx(fits.coefficients, rel=1e-10)
    keep = np.arange(found.size) != 0
    joint, fits = (
        hesspec.fit_transfer_law(SIZES[keep], PARAMETERS[keep], found[keep], method=m) for m in ("joint", "fits")
    )
    assert np.abs(joint.coefficients - fits.coefficients).max() > 1e-3


def test_the_joint_fit_is_the_regression_of_its_textbook() -> None:
    found = noisy(2)
    law = hesspec.fit_transfer_law(SIZES, PARAMETERS, found)
    design = np.stack([np.ones(12), np.log(SIZES), np.log(PARAMETERS)], axis=1)
    solution, residual, *_ = np.linalg.lstsq(design, np.log(found))
    errors = np.sqrt(residual[0] / 9 * np.diag(np.linalg.inv(design.T @ design)))
    assert law.coefficients == pytest.approx(solution, rel=1e-10)
    # 2.262157 is Student's t for 95% with 9 degrees of freedom.
    assert law.upper - law.coefficients == pytest.approx(2.262157 * errors, rel=1e-6)


@pytest.mark.parametrize("method", ["joint", "fits"])
def test_intervals_hold_the_true_exponents_as_often_as_they_say(method: str) -> None:
    # Of 400 draws, 95% are 380 with a standard deviation of 4.4; four of these are allowed.
    held = np.zeros(3)
    group = np.repeat(np.arange(3), 4)
    for seed in range(400):
        found = noisy(seed)
        if method == "fits":
            found = found * np.exp(0.2 * np.random.default_rng(10_000 + seed).normal(size=3))[group]
        law = hesspec.fit_transfer_law(SIZES, PARAMETERS, found, method=method)
        held += (law.lower <= TEXT.coefficients) & (TEXT.coefficients <= law.upper)
    assert (held >= 380 - 18).all()
    assert held[2] <= 380 + 18


def test_points_without_positive_transfer_are_left_out_and_counted() -> None:
    found = noisy(3)
    with_others = hesspec.fit_transfer_law(
        np.append(SIZES, [1e9, 1e9]), np.append(PARAMETERS, [1e6, 1e7]), np.append(found, [-1e8, np.nan])
    )
    assert with_others.left_out == 2
    assert with_others.coefficients == pytest.approx(hesspec.fit_transfer_law(SIZES, PARAMETERS, found).coefficients)
    assert with_others.point_transferred[-2] == -1e8
    assert "left out: 2" in with_others.summary()["points"]
    assert "left out" in repr(with_others)
    assert "2 left out" in with_others.plot().axes[0].get_title(loc="left")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"transferred": -np.ones(12)}, "positive at 0 of 12 points"),
        ({"parameters": np.full(12, 1e6)}, r"All numbers of parameters N with D_T > 0 are 1e\+06.*fit_power_law"),
        ({"sizes": np.full(12, 1e5)}, "All sizes D_F"),
        ({"parameters": 2 * SIZES}, "rise together"),
        ({"parameters": np.zeros(12)}, "parameters must be positive and finite, but contains 0"),
        ({"sizes": SIZES[:5]}, "three one-dimensional arrays"),
        ({"method": "both"}, "method"),
        ({"confidence": 2}, "confidence is 2"),
    ],
)
def test_what_cannot_be_fitted_is_refused(change: dict, message: str) -> None:
    given = {"sizes": SIZES, "parameters": PARAMETERS, "transferred": noisy(4), **change}
    with pytest.raises(ValueError, match=message):
        hesspec.fit_transfer_law(**given)


def test_two_steps_need_several_n_for_three_d_f() -> None:
    keep = SIZES < 1e7
    with pytest.raises(ValueError, match="2 of the 2 sizes D_F"):
        hesspec.fit_transfer_law(SIZES[keep], PARAMETERS[keep], noisy(5)[keep], method="fits")


def test_a_law_is_shown_only_if_the_points_support_it() -> None:
    assert isinstance(earned_transfer_law(SIZES, PARAMETERS, noisy(6)), hesspec.TransferLaw)
    keep = SIZES < 1e7
    assert "2 sizes of the data" in earned_transfer_law(SIZES[keep], PARAMETERS[keep], noisy(6)[keep])
    assert "no sizes of the data" in earned_transfer_law(SIZES, PARAMETERS, -noisy(6))
    one = PARAMETERS == 1e6
    assert "1 sizes of the network" in earned_transfer_law(SIZES[one], PARAMETERS[one], noisy(6)[one])
    assert "known to ±" in earned_transfer_law(SIZES, PARAMETERS, noisy(6, sigma=5))


def test_files_and_bad_arguments(tmp_path: Path) -> None:
    law = hesspec.fit_transfer_law(SIZES, PARAMETERS, noisy(7), unit="characters")
    check_saved(law, tmp_path)
    for k, beta in ((0, 1), (-1, 1), (1, 0), (float("nan"), 1)):
        with pytest.raises(ValueError, match="k > 0"):
            hesspec.TransferLaw.of(k, 0.1, beta)
    with pytest.raises(ValueError, match="data must be positive"):
        TEXT.transferred(0, 1)
    with pytest.raises(ValueError, match="no points to draw"):
        TEXT.plot()
    assert "k" in TEXT.summary()
