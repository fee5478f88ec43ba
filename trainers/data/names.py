"""Class names as AGFT's evaluation makes them (its clip_dataset.py); every rule is quoted in docs/datasets.md."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import cache

from trainers.data.countries import COUNTRIES
from trainers.errors import UserError

EUROSAT = {
    "AnnualCrop": "annual crop land",
    "Forest": "a forest",
    "HerbaceousVegetation": "brushland or shrubland",
    "Highway": "a highway or a road",
    "Industrial": "industrial buildings",
    "Pasture": "pasture land",
    "PermanentCrop": "permanent crop land",
    "Residential": "residential buildings",
    "River": "a river",
    "SeaLake": "a sea or a lake",
}  # by folder
PCAM = ("healthy lymph node tissue", "lymph node tumor tissue")
# In label order. torchvision has the same names with hyphens, an apostrophe and a question mark.
FLOWER_NAMES = """
pink primrose; hard leaved pocket orchid; canterbury bells; sweet pea; english marigold; tiger lily; moon orchid;
bird of paradise; monkshood; globe thistle; snapdragon; colts foot; king protea; spear thistle; yellow iris;
globe flower; purple coneflower; peruvian lily; balloon flower; giant white arum lily; fire lily;
pincushion flower; fritillary; red ginger; grape hyacinth; corn poppy; prince of wales feathers;
stemless gentian; artichoke; sweet william; carnation; garden phlox; love in the mist; mexican aster;
alpine sea holly; ruby lipped cattleya; cape flower; great masterwort; siam tulip; lenten rose; barbeton daisy;
daffodil; sword lily; poinsettia; bolero deep blue; wallflower; marigold; buttercup; oxeye daisy;
common dandelion; petunia; wild pansy; primula; sunflower; pelargonium; bishop of llandaff; gaura; geranium;
orange dahlia; pink yellow dahlia; cautleya spicata; japanese anemone; black eyed susan; silverbush;
californian poppy; osteospermum; spring crocus; bearded iris; windflower; tree poppy; gazania; azalea;
water lily; rose; thorn apple; morning glory; passion flower; lotus; toad lily; anthurium; frangipani; clematis;
hibiscus; columbine; desert rose; tree mallow; magnolia; cyclamen; watercress; canna lily; hippeastrum; bee balm;
ball moss; foxglove; bougainvillea; camellia; mallow; mexican petunia; bromelia; blanket flower; trumpet creeper;
blackberry lily
"""
FLOWERS = tuple(" ".join(name.split()) for name in FLOWER_NAMES.split(";"))


def refine(name: str) -> str:
    """Lower case; `_`, `-` and `/` are spaces."""
    return name.lower().replace("_", " ").replace("-", " ").replace("/", " ").strip()


def caltech256_name(folder: str) -> str:
    """`251.airplanes-101` -> `airplanes`."""
    return refine(folder[4:].replace("-101", ""))


def aircraft_name(variant: str) -> str:
    """`737-400` -> `Boeing 737-400`; every other variant as it is."""
    return f"Boeing {variant}" if variant.startswith("7") else variant


def car_name(name: str) -> str:
    """`Ford F-150 Regular Cab 2012` -> `Ford F 150 Regular Cab`: without the year, which makes some classes alike."""
    return name[:-5].replace("-", " ")


def country_name(code: str) -> str:
    """ISO 3166-1's short name, up to the first comma; XK is Kosovo."""
    if code not in COUNTRIES:
        raise UserError(f"{code!r} is no country code of ISO 3166-1 (nor XK)")
    return COUNTRIES[code]


# Of "WNID NAME\n" for the 1000 classes; the names are those of the official code's imagenet_classes_names.txt.
IMAGENET_NAMES_SHA256 = "122558d4cec1b7a8d2f0ff9f179cdb3fcb42547d59eb7cae1246c3af53beb9d1"


IMAGENET_NAMED_BY = f"timm's WordNet synonyms of ImageNet's classes, SHA-256 {IMAGENET_NAMES_SHA256}"
NAMED_HERE = "the list in trainers.data.names"


@cache
def _imagenet() -> dict[str, str]:
    """The first WordNet synonym of each of ImageNet's 1000 classes, `_` and `-` read as spaces; case kept.

    From timm's synset list, which every installation has: a set's names must not depend on who unpacked the archive.
    """
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    found = {
        wnid: info.label_name_to_description(wnid, detailed=False).split(", ")[0].replace("_", " ").replace("-", " ")
        for wnid in info.label_names()
    }
    digest = hashlib.sha256("".join(f"{wnid} {name}\n" for wnid, name in sorted(found.items())).encode()).hexdigest()
    if digest != IMAGENET_NAMES_SHA256:
        raise UserError(
            f"timm's names of ImageNet's classes have SHA-256 {digest}, not {IMAGENET_NAMES_SHA256}: another version "
            "of timm has other names, and prompts made of them would not be comparable; install the pinned one"
        )
    return found


def imagenet_names(wnids: Iterable[str] | None = None) -> tuple[str, ...]:
    """Names of the classes with these WordNet numbers (default: all 1000, in label order)."""
    table = _imagenet()
    wanted = sorted(table) if wnids is None else list(wnids)
    for wnid in wanted:
        if wnid not in table:
            raise UserError(f"{wnid!r} is none of ImageNet's 1000 classes")
    return tuple(table[wnid] for wnid in wanted)
