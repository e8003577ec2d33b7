import backbone_cases as cases
import backbone_parity as parity
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.features import googlenet
from jaxdet.features.googlenet import GoogLeNet


def test_names_are_torchvisions():
    parity.assert_names("googlenet", GoogLeNet(), method="all_logits")


def test_classifiers_in_the_middle_are_made_on_request():
    x = jnp.ones((1, 64, 64, 3))
    rows = parity.names(parity.like(GoogLeNet(), x, train=False, method="logits"))
    everything = set(parity.GOLDEN["googlenet/names"].tolist())
    assert {row.split(".")[0] for row in everything - rows} == {"aux1", "aux2"}


def test_numbers_are_torchvisions():
    maps, found = parity.run("googlenet", GoogLeNet(), method="all_logits")
    parity.assert_maps("googlenet", maps)
    for name in ("logits", "aux1", "aux2"):
        want = parity.GOLDEN[f"googlenet/{name}"]
        parity.assert_close(getattr(found, name)[:, cases.CLASSES], want)


@pytest.mark.slow
def test_numbers_of_transformed_pictures_are_torchvisions():
    _, found = parity.run("googlenet", GoogLeNet(transform_input=True), method="all_logits")
    parity.assert_close(found.logits[:, cases.CLASSES], parity.GOLDEN["googlenet/transformed"])


def test_pictures_are_brought_to_another_mean_and_deviation(rng):
    pixels = rng.uniform(size=(1, 4, 5, 3))
    x = (pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    got = googlenet.to_half(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(got, (pixels - 0.5) / 0.5, atol=1e-6)


def test_poolings_round_up():
    assert [s[:2] for s in parity.map_shapes(GoogLeNet(), 65, 40)] == [
        (33, 20),
        (16, 10),
        (8, 5),
        (4, 2),
        (2, 1),
    ]


@pytest.mark.slow
def test_frozen_stages_get_no_gradient_and_keep_their_statistics():
    pulled, moved = parity.trained_layers(GoogLeNet(n_frozen=4))
    assert pulled == moved == {"inception5a", "inception5b"}


def test_half_precision():
    parity.assert_half_precision(GoogLeNet(dtype=jnp.bfloat16))
