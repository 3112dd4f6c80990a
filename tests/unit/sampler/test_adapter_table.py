"""Adapters as the engine keeps them: each computes what it does in the trainer, whatever form it came in."""

import pytest
import torch

from farstep_model.adapter import Adapter
from farstep_model.spec import LoraSpec
from farstep_sampler.engines.adapter_table import AdapterTable


@pytest.mark.parametrize(
    "settings",
    [
        {"rank": 4, "alpha": 6.0},
        {"rank": 4, "use_rslora": True},
        {"rank": 20, "alpha": 3.0, "use_rslora": True},
        {"rank": 4, "use_dora": True},
        {"rank": 20, "alpha": 3.0, "use_rslora": True, "use_dora": True},
    ],
)
def test_a_row_is_as_in_the_trainer(base, layers, settings):
    adapter = Adapter.init(layers, LoraSpec(**settings), seed=1)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(2)
        for weights in adapter.weights.values():
            for parameter in weights.parameters():
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    table = AdapterTable(layers, num_slots=2)
    table.load(1, Adapter.init(layers, LoraSpec(8), seed=3))
    table.load(2, adapter)
    ids_BT = torch.randint(3, 300, (3, 7), generator=torch.Generator().manual_seed(4))
    with torch.no_grad(), layers.active([adapter]):
        expected = base.hidden_states(ids_BT)
    for rows in ([2, 2, 2], [2, 0, 2], [1, 2, 0]):
        with table.active(torch.tensor(rows)):
            found = base.hidden_states(ids_BT)
        for row, slot in enumerate(rows):
            if slot == 2:
                torch.testing.assert_close(found[row], expected[row], rtol=1e-5, atol=1e-5)
