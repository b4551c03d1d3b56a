"""Each test of an exercise runs once for every stored case. Print what came, and a hint."""

import pytest

from course.tests.compare import cases, complaint


def pytest_generate_tests(metafunc):
    exercise = metafunc.module.__name__.split(".")[-1].removeprefix("test_")
    found = cases(exercise)
    metafunc.parametrize("check", found, ids=[case["name"] for case in found], indirect=True)


@pytest.fixture
def check(request):
    """check(answer) calls answer with the inputs of the case, and fails with what is wrong."""

    def run(answer):
        try:
            came = answer(**request.param["inputs"])
        except NotImplementedError as missing:
            pytest.fail(str(missing), pytrace=False)
        text = complaint(request.param, came)
        if text:
            pytest.fail(f"{request.param['name']}\n{text}", pytrace=False)

    return run
