import pytest
from tiny import TEXTS, TOWERS, tiny_graph


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("tower", TOWERS)
def test_made(text, tower):
    tiny_graph(text, tower)
