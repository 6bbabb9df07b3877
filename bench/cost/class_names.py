"""Class names of public data sets, for measurements that need names but no images."""

from __future__ import annotations

_CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck"
_CIFAR100 = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish
forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle
mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale willow_tree
wolf woman worm
"""
_EUROSAT = (
    "Annual Crop Land, Forest, Herbaceous Vegetation Land, Highway or Road, Industrial Buildings, Pasture Land, "
    "Permanent Crop Land, Residential Buildings, River, Sea or Lake"
)


def class_names(data: str) -> tuple[str, ...]:
    """Names of `cifar10`, `eurosat`, `cifar100` or `imagenet` (open_clip's list)."""
    if data == "imagenet":
        import open_clip

        return tuple(open_clip.IMAGENET_CLASSNAMES)
    lists = {"cifar10": _CIFAR10.split(), "cifar100": _CIFAR100.split(), "eurosat": _EUROSAT.split(", ")}
    return tuple(name.replace("_", " ") for name in lists[data])
