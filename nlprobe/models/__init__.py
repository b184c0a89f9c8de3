"""Backbones, the models of the paper by name, and what they cost."""

from nlprobe.models.build import Config, Network, build, config_from_dict, trunk_of
from nlprobe.models.config import ARCHITECTURES, ResNetConfig
from nlprobe.models.costs import Costs, costs_of, count_costs, differing_cells
from nlprobe.models.detection import DetectionNetwork
from nlprobe.models.detection_config import DetectionConfig
from nlprobe.models.detections import Detections
from nlprobe.models.inflation import INFLATIONS, inflate
from nlprobe.models.insertion import Insertion
from nlprobe.models.loading import load_backbone, load_strictly
from nlprobe.models.resnet import BasicBlock, Bottleneck, ResNet
from nlprobe.models.segmentation import SegmentationNetwork
from nlprobe.models.segmentation_config import SegmentationConfig
from nlprobe.models.video import VideoBasicBlock, VideoBottleneck, VideoResNet
from nlprobe.models.video_config import VideoConfig
from nlprobe.models.zoo import ModelEntry, PaperRow, entry, names, paper_distances, rows

__all__ = [
    "ARCHITECTURES",
    "INFLATIONS",
    "BasicBlock",
    "Bottleneck",
    "Config",
    "Costs",
    "DetectionConfig",
    "DetectionNetwork",
    "Detections",
    "Insertion",
    "ModelEntry",
    "Network",
    "PaperRow",
    "ResNet",
    "ResNetConfig",
    "SegmentationConfig",
    "SegmentationNetwork",
    "VideoBasicBlock",
    "VideoBottleneck",
    "VideoConfig",
    "VideoResNet",
    "build",
    "config_from_dict",
    "costs_of",
    "count_costs",
    "differing_cells",
    "entry",
    "inflate",
    "load_backbone",
    "load_strictly",
    "names",
    "paper_distances",
    "rows",
    "trunk_of",
]
