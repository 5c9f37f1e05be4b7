"""NetCDF files that were made to read other files, to run code, or to take all memory: refused, and nothing is read."""

import os
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from h5py import h5d, h5p, h5s, h5t, h5z

import hesspec
from hesspec.applications.class_structure.record import ClassStructure
from hesspec.report import write_report
from hesspec.spectra.spectrum import Spectrum

NAME, COUNT = "ritz_weights", 15
SECRET = np.linspace(0.0123456789, 0.0234567891, COUNT)
Change = Callable[[h5py.File], None]


@pytest.fixture
def changed(tmp_path: Path, spectrum: Callable[..., Spectrum]) -> Callable[..., Path]:
    """Function that saves a spectrum, and changes its file with h5py."""
    (tmp_path / "secret.bin").write_bytes(SECRET.tobytes())
    with h5py.File(tmp_path / "secret.h5", "w") as other:
        other["values"] = SECRET

    def change(how: Change, name: str = "x.nc") -> Path:
        path = tmp_path / name
        spectrum().save(path)
        with h5py.File(path, "r+") as file:
            how(file)
        return path

    return change


def put(file: h5py.File, **how: object) -> None:
    """Another variable in the place of the weights of the Ritz values."""
    del file[NAME]
    file.create_dataset(NAME, **({"shape": (COUNT,), "dtype": "<f8"} | how))


def external_storage(file: h5py.File) -> None:
    secret = Path(file.filename).with_name("secret.bin")
    put(file, external=[(str(secret), 0, 8 * COUNT)])


def virtual(file: h5py.File) -> None:
    del file[NAME]
    layout = h5py.VirtualLayout(shape=(COUNT,), dtype="<f8")
    layout[:] = h5py.VirtualSource(str(Path(file.filename).with_name("secret.h5")), "values", shape=(COUNT,))
    file.create_virtual_dataset(NAME, layout)


def external_link(file: h5py.File) -> None:
    del file[NAME]
    file[NAME] = h5py.ExternalLink(str(Path(file.filename).with_name("secret.h5")), "values")


def soft_link(file: h5py.File) -> None:
    del file[NAME]
    file[NAME] = h5py.SoftLink("/ritz_bounds")


def dangling_link(file: h5py.File) -> None:
    file["more"] = h5py.SoftLink("/nothing/there")


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        (external_storage, f"the values of '{NAME}' are in another file (external storage)."),
        (virtual, f"the values of '{NAME}' are in other locations or other files (a virtual dataset)."),
        (external_link, f"'{NAME}' is a link to another location or another file."),
        (soft_link, f"'{NAME}' is a link to another location or another file."),
        (dangling_link, "'more' is a link to another location or another file."),
    ],
)
def test_other_files_are_not_read(changed, how, reason):
    path = changed(how)
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - the whole sentence is looked at
        hesspec.load(path)
    assert str(raised.value) == f"{str(path)!r} was not read: {reason}"


def test_a_report_does_not_show_other_files(changed, tmp_path, spectrum):
    changed(external_storage)
    spectrum().save(tmp_path / "good.nc")
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "x.nc" in page
    assert "are in another file (external storage)" in page
    assert not any(repr(float(value)) in page for value in SECRET)


def filtered(number: int, *values: int) -> Change:
    """A variable with a filter that the library would look for among its plug-ins."""

    def change(file: h5py.File) -> None:
        del file[NAME]
        how = h5p.create(h5p.DATASET_CREATE)
        how.set_chunk((COUNT,))
        how.set_filter(number, h5z.FLAG_OPTIONAL, values)
        h5d.create(file.id, NAME.encode(), h5t.IEEE_F64LE, h5s.create_simple((COUNT,)), how)

    return change


def committed(file: h5py.File) -> None:
    file["mine"] = np.dtype("<f8")
    put(file, dtype=file["mine"], data=SECRET)


def committed_elsewhere(file: h5py.File) -> None:
    """A type that nothing in the file but the variable refers to."""
    committed(file)
    del file["mine"]


def of_type(dtype: object) -> Change:
    return lambda file: put(file, dtype=dtype)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        (filtered(32015), "needs the HDF5 filters [32015]; only deflate"),
        (filtered(h5z.FILTER_SCALEOFFSET, 2, 0), f"needs the HDF5 filters [{h5z.FILTER_SCALEOFFSET}]"),
        (lambda file: put(file, compression="lzf"), f"needs the HDF5 filters [{h5z.FILTER_LZF}]"),
        (committed, "'mine' is not a variable"),
        (committed_elsewhere, "has a type that is defined elsewhere"),
        (lambda file: file.create_group("more"), "'more' is not a variable"),
        (of_type([("a", "<f4"), ("b", "<f4")]), "neither numbers nor strings"),
        (of_type(h5py.opaque_dtype(np.dtype("M8[s]"))), "neither numbers nor strings"),
        (of_type(h5py.ref_dtype), "neither numbers nor strings"),
        (of_type(h5py.regionref_dtype), "neither numbers nor strings"),
        (of_type(h5py.vlen_dtype(np.int32)), "neither numbers nor strings"),
        (of_type(h5py.enum_dtype({"a": 1})), "neither numbers nor strings"),
        (of_type(np.dtype(("<f8", 2))), "neither numbers nor strings"),
        (of_type(np.longdouble), "neither numbers nor strings"),
        (lambda file: file.attrs.create("norm", 1.0, dtype=[("a", "<f8")]), "neither numbers nor strings"),
        (lambda file: file.attrs.create("norm", [1.0, 2.0]), "its attribute 'norm' is not a single number or string"),
        (lambda file: file[NAME].attrs.create("scale_factor", 2.0), "was packed into fewer bits"),
        (lambda file: file[NAME].attrs.create("add_offset", 2.0), "was packed into fewer bits"),
    ],
)
def test_what_results_do_not_have_is_not_read(changed, how, reason):
    path = changed(how)
    with pytest.raises(ValueError, match=r"x\.nc' was not read: ") as raised:
        hesspec.load(path)
    assert reason in str(raised.value)


def chunk_of_gigabytes(file: h5py.File) -> None:
    put(file, maxshape=(None,), chunks=(1 << 28,), compression="gzip")


def many_texts(file: h5py.File) -> None:
    for number in range(40):
        file.attrs[f"note{number}"] = "x" * (1 << 20)


def bomb(file: h5py.File) -> None:
    put(file, shape=(1 << 23,), chunks=(1 << 20,), compression="gzip", compression_opts=9)
    for start in range(0, 1 << 23, 1 << 20):
        file[NAME][start : start + (1 << 20)] = 0.0


SIZES: dict[str, tuple[Change, str]] = {
    "nothing stored": (lambda file: put(file, shape=(1 << 30,)), "declares 8.59 GB of values, but has 0 bytes"),
    "no memory has it": (lambda file: put(file, shape=(1 << 59,)), "declares 4,611,686,018 GB"),
    "two dimensions": (lambda file: put(file, shape=(1 << 31, 1 << 20)), "declares"),
    "compressed": (bomb, "it requires 75.5 MB of memory, but a file of its size may require at most 16.8 MB"),
    "a chunk": (chunk_of_gigabytes, "declares 120 bytes of values, but has 0 bytes"),
    "a chunk that is stored": (
        lambda file: put(file, maxshape=(None,), chunks=(1 << 23,), compression="gzip", data=SECRET),
        "it requires 67.1 MB of memory",
    ),
    "variables": (lambda file: [file.create_dataset(f"v{n}", data=1.0) for n in range(1000)], "more than 1000 var"),
    "attributes": (lambda file: [file.attrs.create(f"a{n}", 1.0) for n in range(1001)], "more than 1000 attributes"),
    "texts": (many_texts, "its strings have more than 16,777,216 characters"),
}


def test_no_file_takes_more_memory_than_one_of_its_size_may(changed, read_within_limits):
    paths = [changed(how, f"{number}.nc") for number, (how, _) in enumerate(SIZES.values())]
    said = read_within_limits(*paths)
    for path, (_, reason), sentence in zip(paths, SIZES.values(), said, strict=True):
        assert sentence.startswith(f"{str(path)!r} was not read: ")
        assert reason in sentence


def test_damaged_lists_of_texts_end_in_time(tmp_path, spectrum, structure, read_within_limits):
    """The HDF5 library (2.0) goes through such a list for ever."""
    spectrum().save(tmp_path / "a.nc")
    whole = (tmp_path / "a.nc").read_bytes()
    start = whole.index(b"GCOL")
    (length,) = np.frombuffer(whole, "<u8", 1, start + 24)
    after = start + 32 + -(-int(length) // 8) * 8  # the second text
    paths = []
    for place, size in ((start + 8, 1 << 40), (start + 24, -1), (after + 8, -1), (start + 24, 1 << 40)):
        damaged = bytearray(whole)
        damaged[place : place + 8] = (size % (1 << 64)).to_bytes(8, "little")
        paths.append(tmp_path / f"{len(paths)}.nc")
        paths[-1].write_bytes(damaged)
    damaged = bytearray(whole)
    damaged[start + 16 : start + 32] = bytes(16)  # what is free, of size 0
    paths.append(tmp_path / "free.nc")
    paths[-1].write_bytes(damaged)
    said = read_within_limits(*paths)
    assert len(said) == len(paths)
    assert all(
        "it is damaged: its strings are longer than the list that contains them." in sentence for sentence in said
    )


def test_what_is_not_a_regular_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.nc")
    (tmp_path / "zeros.nc").symlink_to("/dev/zero")
    (tmp_path / "folder.nc").mkdir()
    for name in ("pipe.nc", "zeros.nc", "folder.nc"):
        with pytest.raises(FileNotFoundError, match="There is no file"):
            hesspec.load(tmp_path / name)


def test_a_class_structure_is_read_with_the_same_caution(tmp_path, structure: ClassStructure):
    path = tmp_path / "x.nc"
    structure.save(path)
    with h5py.File(path, "r+") as file:
        del file["gram"]
        file["gram"] = h5py.ExternalLink("/etc/hostname", "x")
    with pytest.raises(ValueError, match=r"x\.nc' was not read: 'gram' is a link"):
        hesspec.load(path)


def test_compressed_files_of_other_programs_are_read(changed, spectrum):
    def compress(file: h5py.File) -> None:
        values = file[NAME][()]
        put(file, data=values, chunks=True, compression="gzip", shuffle=True, fletcher32=True)

    loaded = hesspec.load(changed(compress))
    assert loaded.ritz_weights.tolist() == spectrum().ritz_weights.tolist()
