"""Files of prompts: a file of requests in, a file of answers out, which is right whatever is killed meanwhile."""

from promptmill.batch.batch import Batch
from promptmill.batch.line import LineFormat
from promptmill.batch.options import BatchOptions

__all__ = ["Batch", "BatchOptions", "LineFormat"]
