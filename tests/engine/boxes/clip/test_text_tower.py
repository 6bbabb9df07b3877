"""The text tower by its three ways: exact, differentiable, and refusing what it cannot do.

Models have random weights and few layers. Biases, norms and layer scales are shaken off their initial 0 and 1, which
would hide mistakes.
"""

from __future__ import annotations

import copy
import logging
from dataclasses import replace
from types import SimpleNamespace

import open_clip
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from engine.boxes.clip import text_shared_prefix as packed_text
from engine.boxes.clip.text_shared_prefix import PackedText
from engine.boxes.clip.text_tower import TOLERANCE, TextTower
from engine.boxes.clip.tokenized_prompts import tokenize_prompts
from engine.boxes.clip.transformer_blocks import can_prepack, prepare_layers, why_not
from engine.errors import RefusedError, TaskError

NAMES = ("hot-air balloon", "cat", "old tabby cat", "x", "aquarium fish", "dog")
TEMPLATE = "a photo of a {}, a kind of thing."
EXACT = 1e-6


class NoStart:
    """A tokenizer like SigLIP's: no start token, and the end token is the pad."""

    def __init__(self, context_length):
        self.context_length = context_length
        self._words = open_clip.SimpleTokenizer()

    def __call__(self, texts, context_length=None):
        rows = torch.ones(len(texts), context_length or self.context_length, dtype=torch.long)
        for row, text in zip(rows, texts, strict=True):
            ids = [token + 2 for token in self._words.encode(text)][: len(row) - 1]
            row[: len(ids)] = torch.tensor(ids, dtype=torch.long)
        return rows


def shake(model):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() < 2:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.eval().requires_grad_(False)


def build(name, *, layers=2, **text):
    """An open_clip model of this configuration with a shallow text tower, and its tokenizer."""
    torch.manual_seed(0)
    config = copy.deepcopy(open_clip.get_model_config(name))
    siglip = config["text_cfg"].get("pool_type") == "last"
    config["text_cfg"].update({"layers": layers, "vocab_size": 49410 if siglip else 49408, **text})
    config["text_cfg"].pop("hf_tokenizer_name", None)
    config["vision_cfg"] = {"layers": 1, "width": 64, "head_width": 32, "patch_size": 32, "image_size": 32}
    kind = open_clip.CustomTextCLIP if config.pop("custom_text", False) else open_clip.CLIP
    if "multimodal_cfg" in config:
        kind = open_clip.CoCa
        config["multimodal_cfg"]["layers"] = 1
        config["vision_cfg"]["output_tokens"] = True
    model = shake(kind(**config))
    length = getattr(model, "text", model).context_length
    return model, NoStart(length) if siglip else open_clip.SimpleTokenizer(context_length=length)


@pytest.fixture(scope="module")
def clip():
    return build("ViT-B-32")


@pytest.fixture(scope="module")
def tower(clip):
    return TextTower(*clip, NAMES, TEMPLATE)


def contexts_for(tower, num, num_context, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 3 * tower.sigma * torch.randn(num, num_context, tower.template_context.shape[1], generator=generator)


def plain_features(model, tokenizer, template):
    with torch.no_grad():
        return model.encode_text(tokenizer([template.replace("{}", name) for name in NAMES]), normalize=True)


def largest(a, b):
    return float((a - b).abs().max())


@pytest.mark.parametrize(
    ("name", "text", "path"),
    [
        ("ViT-B-32", {"layers": 1}, "packed"),
        ("ViT-B-16", {"layers": 3}, "packed"),
        ("RN50-quickgelu", {}, "packed"),
        ("ViT-L-14", {}, "packed"),
        ("MobileCLIP-B", {"ls_init_value": 0.3}, "packed"),
        ("ViT-L-14-worldwide", {"eos_id": 49407}, "packed"),
        ("ViT-B-32", {"act_kwargs": {"approximate": "tanh"}}, "packed"),
        ("ViT-B-32", {"qk_norm": True}, "batched"),
        ("ViT-B-16-SigLIP", {}, "batched"),
        ("coca_ViT-B-32", {}, "batched"),
        ("MobileCLIP-S1", {}, "batched"),
    ],
)
def test_every_family_gives_the_plain_forward(name, text, path):
    model, tokenizer = build(name, **text)
    tower = TextTower(model, tokenizer, NAMES, TEMPLATE)
    assert (tower.path, bool(tower.why)) == (path, True)
    assert largest(tower.encode(None)[0], plain_features(model, tokenizer, TEMPLATE)) <= EXACT
    num_context = len(tower.template_context) + 3
    contexts = contexts_for(tower, 3, num_context)
    features = tower.encode(contexts)
    assert features.shape[:2] == (3, len(NAMES))
    assert largest(features, tower.encode(contexts, path="plain")) <= EXACT
    assert largest(features[0], features[1]) > 1e-3
    own = contexts_for(tower, 2 * len(NAMES), num_context).unflatten(0, (2, len(NAMES)))
    assert largest(tower.encode(own), tower.encode(own, path="plain")) <= EXACT


@pytest.mark.parametrize("num_context", [0, 1, 16])
@pytest.mark.parametrize("rows", [8, 1024])
@pytest.mark.parametrize("prepack", [False, True])
def test_any_length_any_chunk_any_linear_layer(clip, tower, monkeypatch, num_context, rows, prepack):
    if prepack and not can_prepack(torch.device("cpu")):
        pytest.skip("this torch has no prepacked linear layers")
    monkeypatch.setattr(packed_text, "CHUNK_ROWS", {True: rows, False: rows})
    tokens = tokenize_prompts(clip[1], NAMES, TEMPLATE, 77)
    packed = PackedText(clip[0], tokens.start[0], prepack=prepack)
    contexts = contexts_for(tower, 5, num_context)
    features = packed.encode(packed.plan(tokens, num_context), contexts)
    assert largest(features, tower.encode(contexts, path="plain")) <= EXACT
    own = contexts_for(tower, 3 * len(NAMES), num_context).unflatten(0, (3, len(NAMES)))
    features = packed.encode(packed.plan(tokens, num_context, own=True), own)
    assert largest(features, tower.encode(own, path="plain")) <= EXACT


def test_words_give_the_models_own_features(clip, tower):
    templates = ["{}", "a blurry photo of the {}.", TEMPLATE]
    features = tower.encode_words(templates)
    for found, template in zip(features, templates, strict=True):
        assert largest(found, plain_features(*clip, template)) <= EXACT


def test_same_call_same_bits_and_company_changes_only_rounding(tower):
    contexts = contexts_for(tower, 8, 4)
    together = tower.encode(contexts)
    assert torch.equal(together, tower.encode(contexts))
    assert largest(together, torch.cat([tower.encode(one[None]) for one in contexts])) <= EXACT
    strided = contexts.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(together, tower.encode(strided))


def test_classes_come_back_in_their_order(clip, tower):
    order = [3, 0, 5, 1, 4, 2]
    other = TextTower(*clip, [NAMES[index] for index in order], TEMPLATE)
    contexts = contexts_for(tower, 2, 4)
    assert largest(other.encode(contexts), tower.encode(contexts)[:, order]) <= EXACT


def test_a_context_for_every_class(tower):
    contexts = contexts_for(tower, 2 * len(NAMES), 4).unflatten(0, (2, len(NAMES)))
    features = tower.encode(contexts)
    for index in range(len(NAMES)):
        assert largest(features[:, index], tower.encode(contexts[:, index])[:, index]) <= EXACT


def test_gradient_is_that_of_the_plain_forward(clip, tower):
    model, _ = clip
    contexts = contexts_for(tower, 2, 5).requires_grad_()
    ids = torch.tensor(tokenize_prompts(clip[1], NAMES, TEMPLATE, 77).rows(5))
    weights = torch.randn(2, len(NAMES), 512, generator=torch.Generator().manual_seed(3))

    def plain(contexts):
        rows = model.token_embedding(ids)
        x = torch.stack([torch.cat([rows[:, :1], one.expand(len(ids), -1, -1), rows[:, 6:]], 1) for one in contexts])
        x = model.transformer((x + model.positional_embedding).flatten(0, 1), attn_mask=model.attn_mask)
        ends = ids.argmax(-1).repeat(2)
        pooled = model.ln_final(x)[torch.arange(len(x)), ends] @ model.text_projection
        return F.normalize(pooled, dim=-1).unflatten(0, (2, -1))

    (expected,) = torch.autograd.grad((plain(contexts) * weights).sum(), contexts)
    (found,) = torch.autograd.grad((tower.encode(contexts) * weights).sum(), contexts)
    assert expected.abs().max() > 1e-3
    assert largest(found, expected) <= 1e-4 * float(expected.abs().max())
    with torch.no_grad():
        assert not tower.encode(contexts).requires_grad
    assert not tower.encode(contexts.detach()).requires_grad


def test_sequences_are_counted(clip):
    tower = TextTower(*clip, NAMES, TEMPLATE)
    assert tower.sequences == 0
    tower.encode(None)
    tower.encode(contexts_for(tower, 3, 4))
    tower.encode_words(["{}", "the {}"])
    assert tower.sequences == (1 + 3 + 2) * len(NAMES)


def test_template_context_and_its_scale(clip, tower):
    ids = clip[1]("a photo of a")[0, 1:5]
    assert torch.equal(tower.template_context, clip[0].token_embedding(ids))
    assert tower.sigma == pytest.approx(float(clip[0].token_embedding.weight.std()))
    few = frozenset(clip[1](f"{TEMPLATE} {' '.join(NAMES)}")[0].tolist())
    weight = clip[0].token_embedding.weight[sorted(few)]
    assert TextTower(*clip, NAMES, TEMPLATE, vocabulary=few).sigma == pytest.approx(float(weight.std()))


# ---------------------------------------------------------------------------------------------------------------------
# Mistakes that the canary must catch


def shifted_positions(monkeypatch):
    plan = PackedText.plan
    monkeypatch.setattr(PackedText, "plan", lambda self, tokens, num, **own: plan(self, tokens, num + 1, **own))


def suffix_mask_dropped(monkeypatch):
    attend = packed_text._attend
    monkeypatch.setattr(packed_text, "_attend", lambda *parts: attend(*parts[:-1], None))


def prefix_mask_dropped(monkeypatch):
    def attend(query, keys, values):
        return F.scaled_dot_product_attention(query[None], keys[None], values[None], scale=1.0)[0]

    monkeypatch.setattr(packed_text, "_attend_causally", attend)


def start_token_zeroed(monkeypatch):
    start = PackedText._start_key_values
    monkeypatch.setattr(
        PackedText, "_start_key_values", lambda self, token: [(0 * k, 0 * v) for k, v in start(self, token)]
    )


def pooled_one_early(monkeypatch):
    plan = PackedText.plan

    def cut(self, tokens, num_context, **own):
        shorter = replace(tokens, suffixes=tuple(suffix[:-1] for suffix in tokens.suffixes))
        return plan(self, shorter, num_context, **own)

    monkeypatch.setattr(PackedText, "plan", cut)


def order_left_sorted(monkeypatch):
    plan = PackedText.plan

    def forget(self, tokens, num_context, *, own):
        made = plan(self, tokens, num_context, own=own)
        if not own:
            return replace(made, order=torch.arange(len(made.order)))
        ends = torch.tensor([len(classes) for classes, _ in made.buckets]).cumsum(0).tolist()
        return replace(
            made, buckets=[(torch.arange(e - len(c), e), b) for e, (c, b) in zip(ends, made.buckets, strict=True)]
        )

    monkeypatch.setattr(PackedText, "plan", forget)


@pytest.mark.parametrize(
    "mistake",
    [
        shifted_positions,
        suffix_mask_dropped,
        prefix_mask_dropped,
        start_token_zeroed,
        pooled_one_early,
        order_left_sorted,
    ],
)
def test_the_canary_catches_a_mistake_and_falls_back_loudly(clip, tower, monkeypatch, caplog, mistake):
    mistake(monkeypatch)
    with caplog.at_level(logging.WARNING):
        broken = TextTower(*clip, NAMES, TEMPLATE)
    assert broken.path == "batched"
    assert "falling back" in caplog.text and broken.why in caplog.text
    assert float(broken.why.split(" by ")[1].split()[0]) > 100 * TOLERANCE
    contexts = contexts_for(tower, 2, 4)
    assert largest(broken.encode(contexts), tower.encode(contexts, path="plain")) <= EXACT


# ---------------------------------------------------------------------------------------------------------------------
# Towers from elsewhere


class HfLike(nn.Module):
    """The shape of open_clip's HFTextEncoder: a transformer with its own embeddings, mean pooling over the mask."""

    def __init__(self, functional=False):
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.transformer = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.embedding = nn.Embedding(49408, 32)
        self.transformer.get_input_embeddings = lambda: self.embedding
        self.proj = nn.Linear(32, 16)
        self.functional = functional

    def forward(self, ids):
        mask = ids != 0
        x = F.embedding(ids, self.embedding.weight) if self.functional else self.embedding(ids)
        x = self.transformer(x, src_key_padding_mask=~mask)
        return self.proj((x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))


class HfClip(nn.Module):
    def __init__(self, text):
        super().__init__()
        self.text = text

    def encode_text(self, ids, normalize=False):
        return F.normalize(self.text(ids), dim=-1) if normalize else self.text(ids)


def test_a_hugging_face_tower_takes_contexts_through_its_embeddings():
    torch.manual_seed(0)
    model, tokenizer = shake(HfClip(HfLike())), open_clip.SimpleTokenizer(context_length=20)
    tower = TextTower(model, tokenizer, NAMES, TEMPLATE)
    assert tower.path == "batched" and "HfLike" in tower.why
    assert largest(tower.encode(tower.template_context[None])[0], plain_features(model, tokenizer, TEMPLATE)) <= EXACT
    assert largest(tower.encode(2 * tower.template_context[None]), tower.encode(None)) > 1e-3


def test_a_real_hugging_face_tower():
    transformers = pytest.importorskip("transformers")
    from open_clip.hf_model import HFTextEncoder

    config = transformers.RobertaConfig(
        vocab_size=49409,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=80,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    text = HFTextEncoder("roberta", 16, config=config, pooler_type="mean_pooler", proj_type="mlp")
    model, tokenizer = shake(HfClip(text)), open_clip.SimpleTokenizer(context_length=20)
    tower = TextTower(model, tokenizer, NAMES, TEMPLATE)
    assert tower.path == "batched" and "HFTextEncoder" in tower.why
    assert largest(tower.encode(tower.template_context[None])[0], plain_features(model, tokenizer, TEMPLATE)) <= EXACT


def test_a_tower_whose_embedding_cannot_be_reached_takes_words_only(caplog):
    torch.manual_seed(0)
    model, tokenizer = shake(HfClip(HfLike(functional=True))), open_clip.SimpleTokenizer(context_length=20)
    tower = TextTower(model, tokenizer, NAMES, TEMPLATE)
    assert tower.path == "words" and tower.template_context is None and "words only" in caplog.text
    assert largest(tower.encode(None)[0], plain_features(model, tokenizer, TEMPLATE)) <= EXACT
    assert largest(tower.encode_words(["{}"])[0], plain_features(model, tokenizer, "{}")) <= EXACT
    with pytest.raises(RefusedError, match="HfLike"):
        tower.encode(torch.zeros(1, 4, 32))


# ---------------------------------------------------------------------------------------------------------------------
# What is refused


@pytest.mark.parametrize(
    ("classes", "template", "match"),
    [
        (NAMES, "a photo of a cat", "exactly one"),
        (NAMES, "a {} of a {}", "exactly one"),
        (NAMES, "photo{}", "melts together"),
        (("cat", "(x)"), "photo of ({})", r"'\(x\)' melts together"),
        ((), TEMPLATE, "no classes"),
        (("cat", " "), "a photo of a {}", "' ' has no tokens"),
        (("cat", "cat " * 80), TEMPLATE, "needs .* tokens"),
    ],
)
def test_prompts_that_cannot_be(clip, classes, template, match):
    with pytest.raises(TaskError, match=match):
        TextTower(*clip, classes, template)


def test_names_outside_the_vocabulary_are_refused_by_name(clip):
    known = frozenset(clip[1]("a photo of a cat, dog")[0].tolist())
    assert TextTower(*clip, ["cat", "dog"], "a photo of a {}", vocabulary=known).path == "packed"
    with pytest.raises(TaskError, match="'aquarium fish'.*does not know"):
        TextTower(*clip, ["cat", "aquarium fish"], "a photo of a {}", vocabulary=known)
    with pytest.raises(TaskError, match="template='a sketch of a {}'"):
        TextTower(*clip, ["cat"], "a sketch of a {}", vocabulary=known)


def test_contexts_that_do_not_fit(tower):
    with pytest.raises(TaskError, match="'hot-air balloon' needs 81 tokens"):
        tower.encode(torch.zeros(1, 69, 512))
    with pytest.raises(RefusedError, match=r"shape \(1, 4, 511\)"):
        tower.encode(torch.zeros(1, 4, 511))
    with pytest.raises(RefusedError, match=r"shape \(1, 2, 4, 512\)"):
        tower.encode(torch.zeros(1, 2, 4, 512))


def test_a_way_that_is_not_there():
    model, tokenizer = build("ViT-B-16-SigLIP", layers=1)
    with pytest.raises(RefusedError, match="no causal mask"):
        TextTower(model, tokenizer, NAMES, TEMPLATE, path="packed")
    with pytest.raises(RefusedError, match="leave the path out"):
        TextTower(model, tokenizer, NAMES, TEMPLATE).encode(None, path="packed")


def test_why_not_names_each_reason(clip):
    model, _ = clip

    def reason(**changed):
        parts = ("token_embedding", "transformer", "attn_mask", "text_pool_type")
        return why_not(SimpleNamespace(**{part: getattr(model, part) for part in parts} | changed))

    assert reason() == ""
    assert "no causal mask" in reason(attn_mask=None)
    assert "not the causal one" in reason(attn_mask=torch.zeros(77, 77))
    assert "'last'" in reason(text_pool_type="last")
    assert "class token" in reason(cls_emb=torch.zeros(512))
    half = copy.deepcopy(model.transformer).half()
    assert "float32" in reason(transformer=half)
    other = copy.deepcopy(model.transformer)
    other.resblocks[1].mlp.gelu = nn.ReLU()
    assert "ReLU" in reason(transformer=other)


def test_an_end_token_inside_a_name_is_seen(clip):
    tower = TextTower(*clip, ["cat", "cat<end_of_text>dog"], "a photo of a {}")
    assert tower.path == "batched" and "pools token" in tower.why


def test_layers_leave_the_models_weights_alone(clip):
    model, _ = clip
    before = {name: value.clone() for name, value in model.state_dict().items()}
    prepare_layers(model)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
