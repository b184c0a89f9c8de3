"""What the zoo knows of a model."""

from dataclasses import dataclass

from nlprobe.models.config import ResNetConfig
from nlprobe.models.detection_config import DetectionConfig
from nlprobe.models.segmentation_config import SegmentationConfig
from nlprobe.models.video_config import VideoConfig
from nlprobe.models.zoo.paper import PaperRow


@dataclass(frozen=True)
class ModelEntry:
    """A model of the paper, or its miniature twin.

    Args:
        name: `<data set>/<network>`, such as `imagenet/resnet50-nl`.
        task: `classification`, `detection`, `segmentation` or `action_recognition`; the task that trains and scores it.
        summary: What it is, in a line.
        config: What `models.build` makes it from.
        recipe: Name of the recipe that trains it.
        input_shape: Channels, frames of a clip, height and width of the input for which costs are counted.
        paper: The rows of the paper's tables that print it, the most detailed table last.
        full_size: Of a miniature twin, the name of the model that it is the small version of.
        remark: What is known of the printed cells that our count does not give, in a sentence.
    """

    name: str
    task: str
    summary: str
    config: ResNetConfig | DetectionConfig | SegmentationConfig | VideoConfig
    recipe: str
    input_shape: tuple[int, ...]
    paper: tuple[PaperRow, ...] = ()
    full_size: str | None = None
    remark: str = ""
