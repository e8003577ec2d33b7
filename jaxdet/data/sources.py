"""Opens what `--data` names, says what was understood, writes it as COCO ground truth."""

from jaxdet.data.records import Annotation, DataError, Source

__all__ = ["Annotation", "DataError", "Source"]
