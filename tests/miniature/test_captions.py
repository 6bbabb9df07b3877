"""Captions are true of their images, and false where an attribute they mention differs."""

from dataclasses import replace

import numpy as np
import open_clip
import pytest

from engine.random_streams import Purpose, rng
from miniature import captions, render


@pytest.fixture(scope="module")
def scenes():
    return render.draw(rng(4, 0, Purpose.RENDER), 800)


@pytest.fixture(scope="module")
def claims(scenes):
    return captions.claim(rng(4, 1, Purpose.RENDER), scenes)


def test_each_caption_is_true_of_its_image_and_of_few_others(scenes, claims):
    truth = captions.true_of(claims, scenes)
    assert truth.diagonal().all()
    assert 0.002 < truth.mean() < 0.05


def test_a_changed_attribute_makes_mentions_of_it_false(scenes, claims):
    single = scenes.count == 1
    for name, num in (("background", 10), ("size", 2), ("position", 9), ("direction", 4)):
        said = (getattr(claims, name) >= 0) & single
        changed = replace(scenes, **{name: (getattr(scenes, name) + 1) % num})
        truth = captions.true_of(claims, changed).diagonal()
        assert said.any() and not truth[said].any()
        assert truth[getattr(claims, name) < 0].all()
    recolored = replace(scenes, color=np.where(scenes.color >= 0, (scenes.color + 1) % 10, -1))
    said = (claims.color[:, 0] >= 0) & single
    assert not captions.true_of(claims, recolored).diagonal()[said].any()
    fewer = replace(scenes, count=np.where(scenes.count > 2, scenes.count - 1, scenes.count))
    said = (scenes.count > 2) & (claims.count != captions.SEVERAL)
    assert not captions.true_of(claims, fewer).diagonal()[said].any()


def test_words_follow_claims(scenes, claims):
    texts = captions.say(rng(4, 2, Purpose.RENDER), claims)
    assert len(set(texts)) > 500
    for row, text in enumerate(texts):
        spoken = text.replace(".", "").replace(",", "").split()
        if (color := claims.color[row, 0]) >= 0:
            assert render.COLORS[color] in spoken
        if 1 < (count := claims.count[row]) < captions.SEVERAL:
            assert captions.NUMBERS[count] in spoken
        if (item := claims.item[row, 0]) >= render.FIRST_SHAPE:
            assert any(word.startswith(render.ITEMS[item]) for word in spoken)
        if claims.background[row] < 0 and (claims.color[row] < 0).all():
            assert not set(render.COLORS) & set(spoken)
    assert captions.say(rng(4, 2, Purpose.RENDER), claims) == texts


def test_words_lists_all_that_is_said_and_all_that_the_tasks_need(scenes, claims):
    tokenizer = open_clip.SimpleTokenizer(context_length=32)
    known = {token for word in captions.words() for token in tokenizer.encode(word)}
    texts = captions.say(rng(4, 3, Purpose.RENDER), claims)
    assert {token for text in texts for token in tokenizer.encode(text)} <= known
    assert max(len(tokenizer.encode(text)) for text in texts) <= 30
