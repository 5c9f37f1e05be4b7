"""Spectra of blocks of matrices whose data ranks share are those of one process."""

from distributed_ranks import launch_forked, results


def test_blocks_of_shared_data_are_those_of_one_process():
    first, second = results("blocks.py", 2, start=launch_forked)
    assert first["names"] == ["0", "2"]
    assert first["apart"] < 1e-9
    assert first["ritz"] == second["ritz"]
