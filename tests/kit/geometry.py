"""Real processors, and the geometry of what they make of a picture."""

from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from nnsight_mmflow.adapters.processing import steps_of
from nnsight_mmflow.prompts.pictures import as_square
from nnsight_mmflow.spans.geometry import ImageGeometry, whole
from nnsight_mmflow.spans.views import View

CLIP = CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
SIGLIP = SiglipImageProcessorPil(size={"height": 336, "width": 336})
LLAVA = LlavaImageProcessorPil(
    size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}, do_pad=True, do_center_crop=True
)
WAYS = {"crop": (CLIP, False), "square": (CLIP, True), "squash": (SIGLIP, False), "processor pads": (LLAVA, False)}


def geometry(size, way="square", patch=14):
    processor, squared = WAYS[way]
    side = 336 // patch
    steps = steps_of(processor, size, squared, (336, 336))
    return ImageGeometry(size, (View(size, steps, patch, (side, side)),), whole((side, side)), raster=squared)


def process(picture, way):
    """What the real processor makes of a picture, before rescaling and normalising: (336, 336, 3)."""
    processor, squared = WAYS[way]
    if squared:
        picture = as_square(picture, processor.image_mean)
    made = processor(picture, do_normalize=False, do_rescale=False, return_tensors="np")["pixel_values"][0]
    return made.transpose(1, 2, 0)
