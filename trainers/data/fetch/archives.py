"""What is downloaded for each dataset whose files anyone may have: addresses, checksums, where the content belongs.

Addresses and MD5s are those of torchvision's classes where it has one; PCAM's SHA-256s are those of TensorFlow Datasets
(its authors' list has the test and validation files swapped); the MD5s of Tiny ImageNet, ImageNet-A, -R and of the
aircraft are the ones in common use. The folders are those that torchvision makes.
"""

from __future__ import annotations

from trainers.data.base import Archive

OXFORD = "https://www.robots.ox.ac.uk/~vgg/data"
PCAM_FILES = "https://zenodo.org/records/2546921/files/camelyonpatch_level_2_split_test"

# fmt: off
CALTECH101 = (
    Archive("https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip", "caltech101",
            "md5:3138e1922a9193bfa496528edbbc45d0", "caltech-101/101_ObjectCategories.tar.gz"),
)
CALTECH256 = (
    Archive("https://data.caltech.edu/records/nyy15-4j048/files/256_ObjectCategories.tar", "caltech256",
            "md5:67b4f42ca05d46448c6bb8ecd2220f6d"),
)
CIFAR10 = (
    Archive("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
            digest="md5:c58f30108f718f92721af3b95e74349a"),
)
CIFAR100 = (
    Archive("https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
            digest="md5:eb9058c3a382ffc7106e4002c42a8d85"),
)
DTD = (Archive(f"{OXFORD}/dtd/download/dtd-r1.0.1.tar.gz", "dtd", "md5:fff73e5086ae6bdbea199a49dfb8a4c1"),)
EUROSAT = (
    Archive("https://huggingface.co/datasets/torchgeo/eurosat/resolve/c877bcd43f099cd0196738f714544e355477f3fd/"
            "EuroSAT.zip", "eurosat", "md5:c8fa014336c82ac7804f0398fcb19387"),
)
FGVC_AIRCRAFT = (
    Archive(f"{OXFORD}/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz",
            digest="md5:d4acdd33327262359767eeaa97a4f732"),
)
FLOWERS102 = (
    Archive(f"{OXFORD}/flowers/102/102flowers.tgz", "flowers-102", "md5:52808999861908f626f3c1f4e79d11fa"),
    Archive(f"{OXFORD}/flowers/102/imagelabels.mat", "flowers-102", "md5:e0620be6f572b9609742df49c70aed4d"),
    Archive(f"{OXFORD}/flowers/102/setid.mat", "flowers-102", "md5:a5357ecc9cb78c4bef273ce3793fc85c"),
)
FOOD101 = (
    Archive("http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz", digest="md5:85eeb15f3717b99a5da872d97d918f87"),
)
OXFORD_PETS = (
    Archive(f"{OXFORD}/pets/data/images.tar.gz", "oxford-iiit-pet", "md5:5c4f3ee8e5d25df40f4fd59a7f44e54c"),
    Archive(f"{OXFORD}/pets/data/annotations.tar.gz", "oxford-iiit-pet", "md5:95a8c909bbe2e81eed6a22bccdf3f68f"),
)
PCAM = (
    Archive(f"{PCAM_FILES}_x.h5.gz", "pcam", "sha256:79174c2201ad521602a5888be8f36ee10875f37403dd3f2086caf2182ef87245"),
    Archive(f"{PCAM_FILES}_y.h5.gz", "pcam", "sha256:0a522005fccc8bbd04c5a117bfaf81d8da2676f03a29d7499f71d0a0bd6068ef"),
)
STL10 = (
    Archive("http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz",
            digest="md5:91f7769df0f17e558f3565bffb0c7dfb"),
)
SUN397 = (
    Archive("http://vision.princeton.edu/projects/2010/SUN/SUN397.tar.gz",
            digest="md5:8ca2778205c41d23104230ba66911c7a"),
)
TINY_IMAGENET = (
    Archive("http://cs231n.stanford.edu/tiny-imagenet-200.zip", digest="md5:90528d7ca1a48142e341f4ef8d21d0de"),
)
IMAGENET_R = (
    Archive("https://people.eecs.berkeley.edu/~hendrycks/imagenet-r.tar",
            digest="md5:a61312130a589d0ca1a8fca1f2bd3337"),
)
IMAGENET_SKETCH = (
    Archive("https://huggingface.co/datasets/songweig/imagenet_sketch/resolve/main/data/ImageNet-Sketch.zip"),
)
IMAGENET_A = (
    Archive("https://people.eecs.berkeley.edu/~hendrycks/imagenet-a.tar",
            digest="md5:c3e55429088dc681f30d81f4726b6595"),
)
IMAGENET_V2 = (
    Archive("https://huggingface.co/datasets/vaishaal/ImageNetV2/resolve/main/imagenetv2-matched-frequency.tar.gz"),
)
COUNTRY211 = (
    Archive("https://openaipublic.azureedge.net/clip/data/country211.tgz",
            digest="md5:84988d7644798601126c29e9877aab6a"),
)
# fmt: on
