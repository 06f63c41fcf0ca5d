"""The contenders of epoch.py that are written in Keras; runs in the peers' environment, without raybench.

    PEER/bin/python benchmarks/epoch_keras.py KIND CORES IMAGES.npz WORK...

KIND is keras-generator (ImageDataGenerator) or keras-layers (preprocessing layers), WORK is model2-32 for model2 at
batch 32; one turn is one epoch of IMAGES.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from keras import layers
from rounds import serve


def model2() -> Any:
    """raybench's model2, layer by layer."""
    stack = [keras.Input((32, 32, 3))]
    for filters, rate in ((32, 0.2), (64, 0.3), (128, 0.4)):
        stack += [layers.Conv2D(filters, 3, padding="same", activation="relu") for _ in range(2)]
        stack += [layers.MaxPooling2D(), layers.Dropout(rate)]
    stack += [layers.BatchNormalization(), layers.Flatten(), layers.Dense(128, activation="relu"), layers.Dropout(0.5)]
    return keras.Sequential([*stack, layers.Dense(10, activation="softmax")])


def resnet18() -> Any:
    """ResNet-18 as timm's: He et al. (2015), with a 7x7 convolution and a pooling before four pairs of blocks."""

    def conv(x: Any, filters: int, size: int, strides: int) -> Any:
        x = layers.ZeroPadding2D(size // 2)(x) if size > 1 else x
        return layers.BatchNormalization()(layers.Conv2D(filters, size, strides, use_bias=False)(x))

    inputs = keras.Input((32, 32, 3))
    x = layers.ZeroPadding2D(1)(layers.ReLU()(conv(inputs, 64, 7, 2)))
    x = layers.MaxPooling2D(3, 2)(x)
    for stage, filters in enumerate((64, 128, 256, 512)):
        for block in range(2):
            strides = 2 if stage > 0 and block == 0 else 1
            other = conv(x, filters, 1, 2) if strides == 2 else x
            x = conv(layers.ReLU()(conv(x, filters, 3, strides)), filters, 3, 1)
            x = layers.ReLU()(layers.add([x, other]))
    return keras.Model(inputs, layers.Dense(10, activation="softmax")(layers.GlobalAveragePooling2D()(x)))


def generator(pixels: Any, labels: Any, batch: int) -> Any:
    """ImageDataGenerator with the augmentation of the other contenders."""
    from keras.src.legacy.preprocessing.image import ImageDataGenerator

    augmented = ImageDataGenerator(
        rescale=1 / 255, rotation_range=20, width_shift_range=0.2, height_shift_range=0.2, zoom_range=0.2
    )
    return augmented.flow(pixels.astype("float32"), labels, batch_size=batch, seed=0)


def preprocessed(pixels: Any, labels: Any, batch: int) -> Any:
    """Preprocessing layers, mapped over the batches of a tf.data.Dataset."""
    import tensorflow as tf

    augmentation = keras.Sequential(
        [
            layers.Rescaling(1 / 255),
            layers.RandomRotation(20 / 360, fill_mode="nearest"),
            layers.RandomTranslation(0.2, 0.2, fill_mode="nearest"),
            layers.RandomZoom((-0.2, 0.2), (-0.2, 0.2), fill_mode="nearest"),
        ]
    )
    data = tf.data.Dataset.from_tensor_slices((pixels, labels)).shuffle(len(pixels), seed=0).batch(batch)
    augmented = data.map(lambda x, y: (augmentation(x, training=True), y), num_parallel_calls=tf.data.AUTOTUNE)
    return augmented.prefetch(tf.data.AUTOTUNE)


def trainer(kind: str, name: str, batch: int, pixels: Any, labels: Any) -> tuple[dict[str, Any], Callable[[], Any]]:
    """Return what the contender says when it is ready, and its turn."""
    model = {"model2": model2, "resnet18": resnet18}[name]()
    model.compile(optimizer=keras.optimizers.Adam(1e-3), loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    data = {"keras-generator": generator, "keras-layers": preprocessed}[kind](pixels, labels, batch)

    def turn() -> Mapping[str, Any]:
        begun = time.perf_counter()
        before = int(model.optimizer.iterations)
        model.fit(data, epochs=1, verbose=0)
        steps = int(model.optimizer.iterations) - before
        return {"seconds": time.perf_counter() - begun, "steps": steps, "images": len(pixels)}

    parameters = sum(int(np.prod(weights.shape)) for weights in model.trainable_weights)
    return {"parameters": parameters, "versions": f"Keras {keras.__version__} on {keras.backend.backend()}"}, turn


def main() -> None:
    kind, cores, images, *works = sys.argv[1:]
    if keras.backend.backend() == "tensorflow":
        import tensorflow

        tensorflow.config.threading.set_intra_op_parallelism_threads(int(cores))
    with np.load(images) as stored:
        pixels, labels = stored["pixels"], stored["labels"]
    made = {}
    for work in works:
        name, _, batch = work.partition("-")
        made[work] = trainer(kind, name, int(batch), pixels, labels)
    serve({work: ready for work, (ready, _) in made.items()}, {work: turn for work, (_, turn) in made.items()})


if __name__ == "__main__":
    main()
