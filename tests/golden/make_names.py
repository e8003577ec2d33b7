"""Writes fasterrcnn_resnet50_fpn_names.json with torchvision 0.28: python PATH_OF_THIS_FILE"""

import json
import pathlib

from torchvision.models import detection

model = detection.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None)
shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
rows = ",\n".join(f"  {json.dumps(name)}: {json.dumps(shape)}" for name, shape in shapes.items())
path = pathlib.Path(__file__).with_name("fasterrcnn_resnet50_fpn_names.json")
path.write_text(f"{{\n{rows}\n}}\n")
