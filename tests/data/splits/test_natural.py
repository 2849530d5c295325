"""What belongs together stays with one client."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leadfl_pl import ConfigError, Natural


@settings(max_examples=50, deadline=None, database=None, derandomize=True)
@given(
    groups=st.lists(st.sampled_from(["Ann", "Bob", "Cem", "Dua", "Eve"]), min_size=1, max_size=80),
    data=st.data(),
    seed=st.integers(0, 2**31),
)
def test_every_group_is_whole_and_every_client_has_its_share_of_them(
    groups: list[str], data: st.DataObject, seed: int
) -> None:
    num_clients = data.draw(st.integers(1, len(set(groups))))
    parts = Natural(groups)(torch.zeros(len(groups)), num_clients, seed)
    assert sorted(torch.cat(parts).tolist()) == list(range(len(groups)))
    held = [{groups[i] for i in part} for part in parts]
    assert sum(map(len, held)) == len(set(groups))
    assert max(map(len, held)) - min(map(len, held)) <= 1


def test_the_seed_decides_who_gets_which_group() -> None:
    split, labels = Natural(list(range(20)) * 2), torch.zeros(40)
    first, again, other = (split(labels, 20, seed) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert {tuple(part.tolist()) for part in first} == {(i, i + 20) for i in range(20)}


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_an_example_of_no_group_is_refused(missing: object) -> None:
    with pytest.raises(ConfigError, match=f"for every example, got {missing} for example 1"):
        Natural([1.0, missing, 2.0])


def test_groups_must_be_enough_and_of_this_data_set() -> None:
    split = Natural(["Ann", "Bob", "Ann"])
    with pytest.raises(ConfigError, match=r"num_clients must be at most 2, the .*, got 3"):
        split(torch.zeros(3), 3, seed=0)
    with pytest.raises(ConfigError, match="of 4 training examples, got 3"):
        split(torch.zeros(4), 2, seed=0)
