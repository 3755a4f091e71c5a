"""A saved network comes back with the mode of each module, not of the whole."""

from torch import nn

import secateur


def test_the_mode_of_every_module_comes_back(tmp_path) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).train()
    model[1].eval()
    found = secateur.load(secateur.save(model, tmp_path))
    assert [m.training for m in found.modules()] == [True, True, False]
