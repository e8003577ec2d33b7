"""GoogLeNet: modules of four branches side by side.

b h w c  images in a batch, height, width, channels. C1..C5 are the maps before the four poolings
         and the last one, at strides 2, 4, 8, 16 and 32.
k        classes.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdet.features.activations import relu
from jaxdet.features.conv import ConvNorm, adaptive_avg_pool, flatten, max_pool
from jaxdet.features.norm import BatchNorm, valid_mask, whole

Conv = Callable[..., ConvNorm]


class Widths(NamedTuple):
    """Channels of the branches of a module; "reduced" ones come before a 3x3 convolution."""

    branch1: int
    reduced2: int
    branch2: int
    reduced3: int
    branch3: int
    branch4: int


# By stage: modules with one resolution.
MODULES = {
    3: {
        "inception3a": Widths(64, 96, 128, 16, 32, 32),
        "inception3b": Widths(128, 128, 192, 32, 96, 64),
    },
    4: {
        "inception4a": Widths(192, 96, 208, 16, 48, 64),
        "inception4b": Widths(160, 112, 224, 24, 64, 64),
        "inception4c": Widths(128, 128, 256, 24, 64, 64),
        "inception4d": Widths(112, 144, 288, 32, 64, 64),
        "inception4e": Widths(256, 160, 320, 32, 128, 128),
    },
    5: {
        "inception5a": Widths(256, 160, 320, 32, 128, 128),
        "inception5b": Widths(384, 192, 384, 48, 128, 128),
    },
}


def to_half(x: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    """Brings images of ImageNet's mean and deviation, as all networks read them, to 0.5 and 0.5."""
    mean, std = jnp.array([0.485, 0.456, 0.406]), jnp.array([0.229, 0.224, 0.225])
    return (x * std.reshape(1, 1, 1, 3) + mean.reshape(1, 1, 1, 3) - 0.5) / 0.5


class AllLogits(NamedTuple):
    """What the classifier and the two earlier ones say, which help to train the lower layers."""

    logits: Float[Array, "b k"]
    aux1: Float[Array, "b k"]
    aux2: Float[Array, "b k"]


class _Reduced(nn.Module):
    """A 1x1 and a 3x3 convolution, named 0 and 1."""

    reduced: int
    features: int
    conv: Conv

    @nn.compact
    def __call__(self, x: Array, mask: Array, *, train: bool) -> Array:
        x = self.conv(self.reduced, 1, name="0")(x, mask, train=train)
        return self.conv(self.features, 3, name="1")(x, mask, train=train)


class _Pooled(nn.Module):
    """A pooling, which counts as 0, and a 1x1 convolution."""

    features: int
    conv: Conv

    @nn.compact
    def __call__(self, x: Array, mask: Array, *, train: bool) -> Array:
        return self.conv(self.features, 1, name="1")(max_pool(x, stride=1), mask, train=train)


class Inception(nn.Module):
    """Branches of four kinds, whose channels are put end to end.

    Source:
      Szegedy et al. 2015 (arXiv:1409.4842), figure 2b.

    Departures:
      The third branch's convolution is 3x3 where the paper's is 5x5, as in torchvision (its issue
      906), whose weights it must fit.
    """

    widths: Widths
    conv: Conv
    """Makes a convolution with norm and ReLU."""

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], mask: Bool[Array, "b h w 1"], *, train: bool
    ) -> Float[Array, "b h w c2"]:
        """Returns all branches' channels."""
        w = self.widths
        branches = (
            self.conv(w.branch1, 1, name="branch1"),
            _Reduced(w.reduced2, w.branch2, self.conv, name="branch2"),
            _Reduced(w.reduced3, w.branch3, self.conv, name="branch3"),
            _Pooled(w.branch4, self.conv, name="branch4"),
        )
        return jnp.concatenate([b(x, mask, train=train) for b in branches], axis=-1)


class _Auxiliary(nn.Module):
    """A classifier that reads a map in the middle."""

    num_classes: int
    dropout: float
    conv: Conv
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        x = adaptive_avg_pool(x, (4, 4))
        mask = jnp.ones((*x.shape[:3], 1), bool)
        x = flatten(self.conv(128, 1, name="conv")(x, mask, train=train))
        x = relu(nn.Dense(1024, dtype=self.dtype, name="fc1")(x))
        x = nn.Dropout(self.dropout)(x, deterministic=not train)
        return nn.Dense(self.num_classes, dtype=self.dtype, name="fc2")(x).astype(jnp.float32)


class GoogLeNet(nn.Module):
    """The network of torchvision's `googlenet`.

    Source:
      Szegedy et al. 2015 (arXiv:1409.4842), table 1 and section 5.

    Departures:
      Batch norm in place of response normalization; poolings round up; the classifiers in the
      middle average maps of any size to 4 x 4; and see `Inception`: all as in torchvision.
    """

    norm: Callable[..., Any] = functools.partial(BatchNorm, epsilon=1e-3)
    n_frozen: int = 0
    """Of C1..C5, how many are not trained."""
    transform_input: bool = False
    """Whether images go through `to_half` first: torchvision's published weights want it."""
    num_classes: int = 1000
    dropout: float = 0.2
    """Of what the classifier reads; with `train` it needs a key named dropout."""
    dropout_aux: float = 0.7
    """Of the hidden layers of those in the middle."""
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Makes the layers; those that a method does not use get no parameters."""
        conv = functools.partial(ConvNorm, norm=self.norm, names=("conv", "bn"), dtype=self.dtype)
        self.conv1, self.conv2, self.conv3 = conv(64, 7, stride=2), conv(64, 1), conv(192, 3)
        for modules in MODULES.values():
            for name, widths in modules.items():
                setattr(self, name, Inception(widths, conv))
        auxiliary = (self.num_classes, self.dropout_aux, conv, self.dtype)
        self.aux1, self.aux2 = _Auxiliary(*auxiliary), _Auxiliary(*auxiliary)
        self.drop = nn.Dropout(self.dropout)
        self.fc = nn.Dense(self.num_classes, dtype=self.dtype)

    def __call__(
        self, x: Float[Array, "b h w c"], sizes: Int[Array, "b 2"], *, train: bool
    ) -> tuple[Float[Array, "b _ _ _"], ...]:
        """Returns (C1, ..., C5).

        Args:
          x: Images normalized by ImageNet's mean and deviation; padding is zero.
          sizes: (height, width) of each picture within the canvas.
          train: Whether norms use (and move) the statistics of the batch.
        """
        maps = self._maps(x, sizes, train=train)
        return tuple(maps[f"C{i}"] for i in range(1, 6))

    def _maps(self, x: Array, sizes: Array, *, train: bool) -> dict[str, Array]:
        """Every layer's map, by its name and where a stage ends by that, too."""
        x, maps = to_half(x) if self.transform_input else x, {}
        stages = [["conv1"], ["conv2", "conv3"], *(list(names) for names in MODULES.values())]
        for i, names in enumerate(stages):
            if i > 0:
                window = 2 if i == 4 else 3
                x = max_pool(x, kernel_size=window, padding=0, ceil_mode=True)
            halved = 2 if i == 0 else 1
            shape = (-(-x.shape[1] // halved), -(-x.shape[2] // halved))
            mask = valid_mask(sizes, shape, stride=2 ** (i + 1))
            frozen = i < self.n_frozen
            for name in names:
                x = getattr(self, name)(x, mask, train=train and not frozen)
                x = maps[name] = jax.lax.stop_gradient(x) if frozen else x
            maps[f"C{i + 1}"] = x
        return maps

    def head(
        self, maps: tuple[Float[Array, "b _ _ _"], ...], *, train: bool
    ) -> tuple[Float[Array, "b d"], Float[Array, "b k"]]:
        """Returns what the last layer reads, and its logits, of the maps of whole canvases."""
        x = self.drop(maps[-1].mean((1, 2)), deterministic=not train)
        return x, self.fc(x).astype(jnp.float32)

    def logits(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b k"]:
        """Returns what the classifier says of pictures that fill their canvas."""
        return self.head(self(x, whole(x), train=train), train=train)[1]

    def all_logits(self, x: Float[Array, "b h w c"], *, train: bool) -> AllLogits:
        """Returns what all three classifiers say; the paper adds 0.3 times the others' losses."""
        maps = self._maps(x, whole(x), train=train)
        return AllLogits(
            self.head((maps["C5"],), train=train)[1],
            self.aux1(maps["inception4a"], train=train),
            self.aux2(maps["inception4d"], train=train),
        )
