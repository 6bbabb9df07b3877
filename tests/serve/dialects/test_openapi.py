"""The description at /docs is right: what schemathesis makes of it finds no server error and nothing undeclared."""

from __future__ import annotations

import os

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS

from serve.routes import make_api

EXAMPLES = int(os.environ.get("KEYHOLE_SCHEMATHESIS", "20"))
"""Requests for each operation and mode; the environment variable is for a longer look."""
EVERY = settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


def _operations() -> list[tuple[str, str]]:
    paths = make_api(None).openapi()["paths"]
    return [(method.upper(), path) for path, methods in paths.items() for method in methods]


@pytest.fixture(scope="module")
def schema(api, photo, in_base64):
    """With images where the schema says bytes: whole ones, cut ones, none."""
    images = [photo(0), photo(1, format="JPEG"), photo(2, size=(64, 64))[:-200], b"", b"%PDF-1.4"]
    schemathesis.openapi.format("byte", st.sampled_from([in_base64(image, uri=True) for image in images] + ["!"]))
    schemathesis.openapi.media_type("image/*", st.sampled_from(images))
    return schemathesis.openapi.from_asgi("/openapi.json", api)


@pytest.fixture(scope="module")
def unfit():
    """Checks that cannot hold: a name that fits the schema may be nobody's, and bytes no image."""
    return CHECKS.get_by_names(["positive_data_acceptance"])


def _aimed(case, image: str):
    """The same request, of a model that is there and with a shape or an input that fits: nearly none has by chance."""
    if "name" in (case.path_parameters or {}):
        case.path_parameters.update(
            name="digits", **({"version": "latest"} if "version" in case.path_parameters else {})
        )
    if isinstance(case.body, dict):
        if "model" in case.body:
            case.body["model"] = "digits"
        for tensor in case.body["inputs"] if case.path.endswith("/infer") else ():
            tensor["shape"] = [len(tensor["data"])]
        if "questions" in case.body:
            case.body["input"] = [{"role": "user", "content": [{"type": "input_image", "image_url": image}]}]
    return case


@pytest.mark.parametrize(("method", "path"), _operations())
def test_answers_are_as_declared(schema, unfit, photo, in_base64, method, path):
    statuses, image = set(), in_base64(photo(), uri=True)

    @EVERY
    @given(case=schema[path][method].as_strategy(), known=st.booleans())
    def check(case, known):
        response = (_aimed(case, image) if known else case).call_and_validate(excluded_checks=unfit)
        statuses.add(response.status_code)

    check()
    assert 200 in statuses, f"only {statuses}: the schema of an answer was never checked"


@pytest.mark.parametrize(("method", "path"), [(method, path) for method, path in _operations() if method == "POST"])
def test_what_does_not_fit_the_schema_is_refused(schema, unfit, method, path):
    @EVERY
    @given(case=schema[path][method].as_strategy(generation_mode=GenerationMode.NEGATIVE))
    def check(case):
        case.call_and_validate(excluded_checks=unfit)

    check()
