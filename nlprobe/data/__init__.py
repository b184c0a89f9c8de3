"""Data sets in their native formats on disk, what lies between a picture and a network, and the miniature data."""

from nlprobe.data.augmentation import Augmentation
from nlprobe.data.clips import ClipAugmentation, ClipPreprocessing, read_preprocessing
from nlprobe.data.coco import Coco
from nlprobe.data.dataset import ImageDataset, Sample, data_fingerprint
from nlprobe.data.images import UnreadableImageError, read_image
from nlprobe.data.instance_augmentation import InstanceAugmentation, scored
from nlprobe.data.instances import Instances
from nlprobe.data.joint_augmentation import JointAugmentation, whole
from nlprobe.data.label_maps import IGNORED, LabelMapDataset
from nlprobe.data.loading import Batch, Batches
from nlprobe.data.miniature import (
    write_miniature_cityscapes,
    write_miniature_coco,
    write_miniature_imagenet,
    write_miniature_kinetics,
)
from nlprobe.data.opening import open_dataset, open_parts
from nlprobe.data.order import derived_seed
from nlprobe.data.preprocessing import Joint, Preprocessing
from nlprobe.data.texts import Line, TextFile, read_texts
from nlprobe.data.video import FrameFolder, FrameStack, Video, VideoFile, open_video

__all__ = [
    "IGNORED",
    "Augmentation",
    "Batch",
    "Batches",
    "ClipAugmentation",
    "ClipPreprocessing",
    "Coco",
    "FrameFolder",
    "FrameStack",
    "ImageDataset",
    "InstanceAugmentation",
    "Instances",
    "Joint",
    "JointAugmentation",
    "LabelMapDataset",
    "Line",
    "Preprocessing",
    "Sample",
    "TextFile",
    "UnreadableImageError",
    "Video",
    "VideoFile",
    "data_fingerprint",
    "derived_seed",
    "open_dataset",
    "open_parts",
    "open_video",
    "read_image",
    "read_preprocessing",
    "read_texts",
    "scored",
    "whole",
    "write_miniature_cityscapes",
    "write_miniature_coco",
    "write_miniature_imagenet",
    "write_miniature_kinetics",
]
