"""The measured ways agree with each other, and the counted floor is what our way really multiplies."""

from __future__ import annotations

import copy
import json

import open_clip
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.cost import image, text
from bench.cost.class_names import class_names
from bench.cost.rivals import TextWays, floor_flops, plain_flops
from bench.cost.timing import Way, compared
from engine.boxes.clip.text_shared_prefix import PackedText
from engine.boxes.clip.tokenized_prompts import tokenize_prompts

LAYERS, WIDTH, EMBED = 2, 128, 64


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    vision = {"layers": 1, "width": 64, "head_width": 32, "patch_size": 32, "image_size": 32}
    text = {"layers": LAYERS, "width": WIDTH, "heads": 2}
    made = open_clip.CLIP(EMBED, vision, text).eval().requires_grad_(False)
    made.visual.preprocess_cfg = {"size": 32, "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
    return made


@pytest.fixture(scope="module")
def tokens():
    return tokenize_prompts(open_clip.SimpleTokenizer(), class_names("eurosat"), text.TEMPLATE, 77)


def test_ways_agree_with_the_models_own_forward(model, tokens):
    ways = TextWays(model, tokens)
    context = model.token_embedding(torch.tensor(tokens.context))[None]
    own = model.encode_text(torch.tensor(tokens.rows()), normalize=True)
    two = torch.cat([context, 1.5 * context])
    for way in (ways.peers, ways.own, ways.truncated):
        assert (way(context)[0] - own).abs().max() <= 1e-6
        assert (way(two) - ways.own(two)).abs().max() <= 1e-6


@pytest.mark.parametrize("num_context", [4, 16])
def test_the_floor_is_what_our_way_multiplies(model, tokens, num_context):
    packed = PackedText(model, tokens.start[0], prepack=False)
    plan = packed.plan(tokens, num_context)
    contexts = torch.randn(3, num_context, WIDTH, generator=torch.Generator().manual_seed(0))
    with FlopCounterMode(display=False) as counter:
        packed.encode(plan, contexts)
    floor = 3 * floor_flops(tokens, num_context, layers=LAYERS, width=WIDTH, embed=EMBED)
    # Within 1 %: attention to a name's own tokens multiplies masked scores too, and the counter leaves out that of the
    # contexts. A layer done for all tokens, or projections that are not cached, would be 3 % and more.
    assert counter.get_total_flops() == pytest.approx(floor, rel=0.01)


def test_the_plain_count_is_what_the_plain_forward_multiplies(model, tokens):
    ids = torch.tensor(tokens.rows())
    with FlopCounterMode(display=False) as counter:
        model.encode_text(ids)
    counted = plain_flops(tokens, layers=LAYERS, width=WIDTH, embed=EMBED)
    assert counter.get_total_flops() == pytest.approx(counted, rel=0.01)


def test_class_lists():
    assert [len(set(class_names(name))) for name in ("cifar10", "eurosat", "cifar100")] == [10, 10, 100]
    assert len(class_names("imagenet")) == 1000


def test_a_run_holds_everything_that_the_table_prints(monkeypatch, model, tmp_path, command):
    monkeypatch.setattr(open_clip, "create_model", lambda *_args, **_options: copy.deepcopy(model))
    target = tmp_path / "numbers.json"
    words = ["--models", "ViT-B-32", "--cases", "cifar10,4", "--turns", "2", "--images", "2", "--out", str(target)]
    code, out, _ = command("bench", "evaluate", *words)
    result = json.loads(target.read_text())
    (row,), (frame,) = result["text"], result["image"]
    assert code == 0 and (row["C"], row["M"], row["turns"], row["path"]) == (10, 4, 2, "packed")
    assert row["difference"] <= text.EXACT_BAR and frame["difference"] <= text.EXACT_BAR
    assert row["ratio"]["peers"]["least"] > 1 and frame["ratio"]["own"]["median"] > 0
    assert text.table([row]) in out and image.table([frame]) in out
    row["ratio"]["peers"]["median"] = 1.0
    assert "(15, missed)" in text.table([row])


def test_a_way_that_answers_otherwise_shows_and_one_that_is_slower_is_so_many_times_dearer():
    clock = iter([1.0, 2.0, 9.0, 1.0, 2.0, 9.0])
    ours = torch.tensor([1.0, 2.0])
    ways = {"ours": Way(lambda: ours, 2), "slow": Way(lambda: ours[:1], 1), "wrong": Way(lambda: ours + 0.5, 2)}
    told = compared(ways, lambda: 4.0, lambda call: (next(clock), call()), 2, (1e9, 3e9))
    assert told["ratio"]["slow"]["median"] == 4 and told["ratio"]["wrong"]["most"] == 9
    assert told["difference"] == 0.5 and told["flops_saved"] == 3
    assert told["gflops"] == 2 and told["of_rate"] == 0.5
