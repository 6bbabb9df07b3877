"""The CLIP box on small models of random weights: what passes through the keyhole, what it costs, what it refuses."""

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from engine.boxes import BoxRequest
from engine.boxes.clip.box import ClipBox
from engine.boxes.clip.precision import computing, precision_of
from engine.boxes.toy import ToyImages
from engine.errors import RecipeError, TaskError
from engine.images import Files
from engine.preprocessing import Preprocess
from engine.prompts import make_prompt
from engine.protocols import GIVES, BlackBox, Prompts, Work

CLASSES = ("cat", "dog", "golden retriever")
TEMPLATE = "a photo of a {}."
PREPROCESS = Preprocess(size=32, mean=(0.5, 0.4, 0.3), std=(0.25, 0.3, 0.2))
VISION = {"image_size": 32, "patch_size": 8, "layers": 2, "width": 64, "head_width": 32}
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
IMAGES = ToyImages(tuple(range(5)), seed=3)
ROWS = np.arange(5)


@pytest.fixture(scope="module", autouse=True)
def cache_folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KEYHOLE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return open_clip.CLIP(16, VISION, TEXT).eval()


@pytest.fixture(scope="module")
def make(model):
    def box(**settings) -> ClipBox:
        vocabulary = settings.pop("vocabulary", None)
        request = BoxRequest(**{"uri": "test:", "classes": CLASSES, "template": TEMPLATE} | settings)
        tokenizer = open_clip.get_tokenizer("")
        return ClipBox(model, tokenizer, PREPROCESS, request, identity={"weights": "0"}, vocabulary=vocabulary)

    return box


@pytest.fixture(scope="module")
def box(make):
    return make()


@pytest.fixture(scope="module")
def staged(box):
    return box.stage(IMAGES)


def test_what_it_says_of_itself(box, model):
    spec = box.spec
    assert isinstance(box, BlackBox)
    assert spec.gives == set(GIVES) and spec.accepts == {"context", "pixels", "words"}
    assert spec.text.context.shape == (4, 32) and spec.text.context.dtype == np.float32
    assert spec.text.sigma == pytest.approx(float(model.token_embedding.weight.std()), rel=1e-5)
    assert spec.text.vocabulary.shape == (49408, 32)
    assert spec.identity == {"weights": "0", "preprocess": PREPROCESS.as_dict()}
    assert spec.image_size == 32 and "text" in spec.path and "image patches" in spec.path


def test_the_template_is_scored_as_open_clip_does_it(box, staged, model):
    mean, std = (torch.tensor(v)[:, None, None] for v in (PREPROCESS.mean, PREPROCESS.std))
    images = torch.stack([torch.from_numpy(PREPROCESS.pixels([image])[0]) for image in IMAGES.read(range(5))])
    with torch.no_grad():
        texts = open_clip.get_tokenizer("")([TEMPLATE.format(name) for name in CLASSES], context_length=16)
        theirs = model.get_logits((images - mean) / std, texts)[0].numpy()
    outputs = box.answer(Prompts(count=1), staged, ROWS)
    assert outputs.text.shape == (1, 3, 16) and outputs.image.shape == (1, 5, 16)
    np.testing.assert_allclose(outputs.logits()[0], theirs, atol=2e-5)


def test_theta_zero_is_the_template(box, staged):
    prompt = make_prompt("text", box.spec)
    zero = box.answer(prompt.decode(np.zeros((2, prompt.space.dim), np.float32)), staged, ROWS)
    template = box.answer(Prompts(count=2), staged, ROWS)
    words = box.answer(Prompts(count=1, words=(TEMPLATE,)), staged, ROWS)
    assert template.text.shape == zero.text.shape == (2, 3, 16)
    np.testing.assert_allclose(zero.text, template.text, atol=1e-6)
    np.testing.assert_allclose(words.text[0], template.text[0], atol=1e-6)


def test_words_are_templates(box, staged, make):
    other = "an old drawing of one {} in a book"
    words = box.answer(Prompts(count=2, words=(TEMPLATE, other)), staged, ROWS).text
    opened_with_it = make(template=other).answer(Prompts(count=1), staged, ROWS).text
    np.testing.assert_allclose(words[1], opened_with_it[0], atol=1e-6)
    assert np.abs(words[0] - words[1]).max() > 1e-3


def test_rows_are_answered_in_the_order_asked(box, staged):
    whole = box.answer(Prompts(count=1), staged, ROWS).image
    np.testing.assert_array_equal(box.answer(Prompts(count=1), staged, np.array([4, 0, 4])).image, whole[:, [4, 0, 4]])


def test_text_and_pixels_together(box, staged):
    prompt = make_prompt("text", box.spec)
    context = prompt.decode(np.full((2, prompt.space.dim), 0.5, np.float32)).context
    pixels = np.zeros((2, 3, 32, 32), np.float32)
    pixels[1, :, :4] = 0.7
    both = box.answer(Prompts(count=2, context=context, pixels=pixels), staged, ROWS)
    assert both.text.shape == (2, 3, 16) and both.image.shape == (2, 5, 16) and both.logits().shape == (2, 5, 3)
    np.testing.assert_array_equal(both.text, box.answer(Prompts(count=2, context=context), staged, ROWS).text)
    np.testing.assert_allclose(both.image[0], staged.features, atol=1e-6)
    assert np.abs(both.image[1] - staged.features).max() > 1e-3


def test_work_counts_sequences_and_encodes_once(make):
    box = make()
    box.work()
    staged = box.stage(IMAGES)
    assert box.work() == Work(image_encodes=5)
    for _ in range(3):
        box.answer(Prompts(count=2), staged, ROWS)
    assert box.work() == Work()  # the template's features are a constant of the task
    box.answer(Prompts(count=4, context=np.zeros((4, 6, 32), np.float32)), staged, ROWS[:2])
    assert box.work() == Work(sequences=4 * 3)
    box.answer(Prompts(count=2, pixels=np.zeros((2, 3, 32, 32), np.float32)), staged, ROWS[:3])
    assert box.work() == Work(image_encodes=2 * 3)
    assert box.work() == Work()


def test_opening_costs_nothing_on_the_account(make):
    assert make().work() == Work()


@pytest.mark.parametrize("kind", GIVES)
def test_a_narrowed_box_gives_one_kind_and_no_more(make, box, staged, kind):
    narrow = make(gives=frozenset({kind}))
    outputs = narrow.answer(Prompts(count=1), staged, ROWS)
    given = {name for name in ("labels", "topk", "scores", "text", "image") if getattr(outputs, name) is not None}
    assert narrow.spec.gives == {kind} and given == ({"text", "image"} if kind == "features" else {kind})
    np.testing.assert_array_equal(outputs.predictions(), box.answer(Prompts(count=1), staged, ROWS).predictions())


def test_not_a_number_passes_through_for_its_candidate_alone(box, staged):
    context = np.zeros((2, 4, 32), np.float32)
    context[0, 0, 0] = np.nan
    outputs = box.answer(Prompts(count=2, context=context), staged, ROWS)
    assert np.isnan(outputs.text[0]).all() and np.isfinite(outputs.text[1]).all()


def test_wrong_shapes_are_refused(box, staged):
    with pytest.raises(ValueError, match="31"):
        box.answer(Prompts(count=1, context=np.zeros((1, 4, 31), np.float32)), staged, ROWS)
    with pytest.raises(ValueError, match=r"\(1, 3, 16, 16\).*\(P, 3, 32, 32\)"):
        box.answer(Prompts(count=1, pixels=np.zeros((1, 3, 16, 16), np.float32)), staged, ROWS)
    with pytest.raises(ValueError, match="not both"):
        box.answer(Prompts(count=1, words=("{}",), context=np.zeros((1, 4, 32), np.float32)), staged, ROWS)


def test_vocabulary_limits_what_is_shown(make, model):
    used = open_clip.get_tokenizer("")([TEMPLATE.format(name) for name in CLASSES]).unique().tolist()
    spec = make(vocabulary=frozenset(used)).spec
    np.testing.assert_array_equal(spec.text.vocabulary, model.token_embedding.weight.detach()[sorted(used)].numpy())
    with pytest.raises(TaskError, match="zebra"):
        make(vocabulary=frozenset(used), classes=("cat", "zebra"))


def test_an_image_that_cannot_be_read_is_named(box, tmp_path):
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    Image.new("RGB", (50, 40)).save(good)
    bad.write_bytes(good.read_bytes()[:60])
    with pytest.raises(TaskError, match="no images"):
        box.stage(Files(()))
    assert len(box.stage(Files((str(good),)))) == 1
    with pytest.raises(TaskError, match=r"bad\.png"):
        box.stage(Files((str(good), str(bad))))


def test_no_gradient_and_no_training_mode(box, model):
    assert not model.training and not any(weight.requires_grad for weight in model.parameters())


def test_staging_in_parts_is_the_same(make, monkeypatch):
    import engine.boxes.clip.box as clip

    source = ToyImages(tuple(range(5)) * 3, seed=1)
    whole = make(options={"cache": "off"}).stage(source)
    monkeypatch.setattr(clip, "_READ", 4)
    monkeypatch.setattr(clip, "KEPT_BYTES", 0)
    box = make(options={"cache": "off"})
    box._block = 4
    parts = box.stage(source)
    assert len(parts) == 15
    np.testing.assert_allclose(parts.features, whole.features, atol=1e-6)
    rows = np.array([3, 14, 0, 0, 7, 9])
    kept, made = list(whole.projected(rows)), list(parts.projected(rows))
    assert [len(part) for part in kept] == [6] and [len(part) for part in made] == [4, 2]
    torch.testing.assert_close(torch.cat(made), kept[0], rtol=0, atol=1e-6)
    pixels = Prompts(count=2, pixels=np.full((2, 3, 32, 32), 0.2, np.float32))
    np.testing.assert_allclose(box.answer(pixels, parts, rows).image, box.answer(pixels, whole, rows).image, atol=1e-6)


@pytest.mark.parametrize("clip", [False, True])
def test_clipping_is_the_boxs(make, clip):
    box = make(options={"clip": "on" if clip else "off"})
    staged = box.stage(IMAGES)
    pixels = np.zeros((2, 3, 32, 32), np.float32)
    pixels[1, :, :8] = 2.0
    answered = box.answer(Prompts(count=2, pixels=pixels), staged, ROWS).image
    shown = torch.from_numpy(PREPROCESS.pixels(IMAGES.read(range(5)))) + torch.from_numpy(pixels[1])
    with torch.no_grad():
        expected = box.image_tower.encode(shown.clamp(0, 1) if clip else shown).numpy()
    np.testing.assert_allclose(answered[0], staged.features, atol=1e-6)
    np.testing.assert_allclose(answered[1], expected, atol=1e-6)
    assert (box.spec.identity.get("clip", False), "clipped" in box.spec.path) == (clip, clip)


def test_bfloat16_is_near_and_of_unit_length(make, box, staged):
    short = make(options={"precision": "bf16"})
    assert short.spec.identity["precision"] == "bf16" and "bf16" in short.spec.path
    context = np.random.default_rng(0).normal(size=(2, 4, 32), scale=0.02).astype(np.float32)
    pixels = np.full((2, 3, 32, 32), 0.3, np.float32)
    for prompts in (Prompts(count=2), Prompts(count=2, context=context), Prompts(count=2, pixels=pixels)):
        exact, rounded = box.answer(prompts, staged, ROWS), short.answer(prompts, short.stage(IMAGES), ROWS)
        for one, other in ((exact.text, rounded.text), (exact.image, rounded.image)):
            assert other.dtype == np.float32
            np.testing.assert_allclose(np.linalg.norm(other, axis=-1), 1, atol=1e-6)
            assert 1e-6 < np.abs(one - other).max() < 0.05
    assert torch.get_autocast_dtype("cpu") is torch.bfloat16 and not torch.is_autocast_enabled("cpu")


def test_options_that_every_such_box_knows(make, box):
    told = make(options={"precision": "bf16", "clip": "on", "cache": "off"}).spec
    assert told.identity == box.spec.identity | {"precision": "bf16", "clip": True}
    assert make(options={"precision": "fp32", "clip": "off", "cache": "on"}).spec.identity == box.spec.identity
    asked = BoxRequest(uri="x:", classes=CLASSES, template=TEMPLATE, device="cuda:0", options={"precision": "tf32"})
    assert precision_of(asked) == "tf32"
    for options, message in (
        ({"precision": "tf32"}, "no effect on 'cpu'"),
        ({"precision": "bf61"}, "did you mean 'bf16'"),
        ({"clip": "yes"}, "clip=yes; it is on or off"),
        ({"cache": "0"}, "cache=0"),
    ):
        with pytest.raises(RecipeError, match=message):
            make(options=options)


def test_precision_flags_are_put_back():
    flags = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [flag.allow_tf32 for flag in flags]
    try:
        for flag in flags:
            flag.allow_tf32 = True
        with computing("fp32", torch.device("cuda")):
            assert [flag.allow_tf32 for flag in flags] == [False, False]
            with pytest.raises(KeyError), computing("tf32", torch.device("cuda")):
                assert [flag.allow_tf32 for flag in flags] == [True, True]
                raise KeyError
            assert [flag.allow_tf32 for flag in flags] == [False, False]
        assert [flag.allow_tf32 for flag in flags] == [True, True]
    finally:
        for flag, value in zip(flags, before, strict=True):
            flag.allow_tf32 = value
