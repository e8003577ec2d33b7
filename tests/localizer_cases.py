"""Small classifiers and localizers, and batches of pictures with one object or two, for tests."""

import functools
from typing import Any

import faster_rcnn_cases as cases
import flax.linen as nn

from jaxdet.features.conv import Conv
from jaxdet.features.networks import Network
from jaxdet.systems import classifier, localizer
from jaxdet.systems.localizer import Architecture, LossOptions

NETWORK = Network(width=16, n_stages=2)


class Dropping(nn.Module):
    """A network with dropout before its last layer."""

    num_classes: int

    def setup(self) -> None:
        self.conv, self.drop = Conv(8, 7, 4), nn.Dropout(0.2)
        self.hidden, self.fc = nn.Dense(32), nn.Dense(self.num_classes)

    def __call__(self, x: Any, sizes: Any, *, train: bool) -> Any:
        del sizes, train
        return (nn.relu(self.conv(x)),)

    def head(self, maps: Any, *, train: bool) -> Any:
        flat = maps[-1].reshape(maps[-1].shape[0], -1)
        x = self.drop(nn.relu(self.hidden(flat)), deterministic=not train)
        return x, self.fc(x)


def dropping_localizer():
    return localizer.Localizer(
        Dropping(cases.K), localizer.AfterVector(16), cases.K, class_agnostic=False
    )


def localizer_of(**fields):
    spec = Architecture(NETWORK, features=32, map_size=(4, 4), **fields)
    return localizer.build(cases.K, spec)


CLASSIFIERS = {
    "classifier: batch norm": functools.partial(classifier.build, cases.K, NETWORK),
    "classifier: dropout": lambda: classifier.Classifier(Dropping(cases.K)),
}
# One object that counts in every picture, beside a crowd; and two objects.
SINGLE = cases.make_batch(
    squares=([(4, 4, 40)], [(4, 30, 20), (20, 6, 36)], [(10, 20, 30)], [(6, 10, 20)])
)
DOUBLE = cases.make_batch(
    squares=(
        [(4, 4, 20), (30, 34, 26)],
        [(2, 36, 20), (36, 6, 22)],
        [(5, 5, 30), (40, 40, 20)],
        [(2, 2, 16), (22, 20, 18)],
    ),
    crowds=(),
)
# (model, batch, options of the loss)
LOCALIZERS = {
    "localizer: after the convolutions": (localizer_of, SINGLE, LossOptions()),
    "localizer: a box a class, dropout": (
        dropping_localizer,
        SINGLE,
        LossOptions(label_smoothing=0.1),
    ),
    "localizer: two boxes": (
        functools.partial(localizer_of, n_boxes=2, class_agnostic=False),
        DOUBLE,
        LossOptions(optimal=True),
    ),
}
