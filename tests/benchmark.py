"""How close training is to what the machine can do; how long a sweep takes; how much memory.

    python tests/benchmark.py

Prints medians of interleaved repeats, on the GPU where TensorFlow sees one. Random pixels in the
shapes of MNIST stand in for data, since the time does not depend on what they show.
"""

import argparse
import resource
import statistics
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
import network_pruning as project

with project.quiet_start():
    DEVICE = project.set_up_device()

import keras
import tensorflow as tf

TRAINING_IMAGES, TEST_IMAGES, PIXELS = 60000, 10000, 784
SIZES = [PIXELS, *project.HIDDEN_UNITS, project.CLASSES]


def random_data(images):
    """Images of random pixels and random labels."""
    rng = np.random.default_rng(0)
    pixels = rng.random((images, PIXELS), dtype=np.float32)
    return tf.constant(pixels), tf.constant(rng.integers(0, project.CLASSES, images))


def random_kernels():
    """Initial kernels of the default network."""
    rng = np.random.default_rng(0)
    return [project.glorot_uniform(rng, *shape) for shape in zip(SIZES, SIZES[1:])]


def timed(work):
    """Seconds that `work` takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def products_epoch():
    """An epoch's matrix products and nothing else: forward, and both of backward.

    The gradient by the images is not needed, so the first layer has two products, the others three.
    """
    kernels = [tf.constant(kernel) for kernel in random_kernels()]
    batch = tf.random.uniform([project.BATCH_SIZE, max(SIZES)])
    inputs = [batch[:, :size] + 0.0 for size in SIZES]

    @tf.function
    def products(batches):
        total = 0.0
        for _ in tf.range(batches):
            for i, kernel in enumerate(kernels):
                total += tf.matmul(inputs[i], kernel)[0, 0]
                total += tf.matmul(inputs[i], inputs[i + 1] + 0, transpose_a=True)[0, 0]
        return total

    return products
