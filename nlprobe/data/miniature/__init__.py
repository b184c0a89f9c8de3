"""Small data sets of real material, each written in the on-disk format of the data set that it stands for."""

from nlprobe.data.miniature.cityscapes import write_miniature_cityscapes
from nlprobe.data.miniature.coco import write_miniature_coco
from nlprobe.data.miniature.imagenet import write_miniature_imagenet
from nlprobe.data.miniature.kinetics import write_miniature_kinetics

__all__ = [
    "write_miniature_cityscapes",
    "write_miniature_coco",
    "write_miniature_imagenet",
    "write_miniature_kinetics",
]
