from plait.api.checkpoint import Checkpoint as Checkpoint
from plait.api.checkpoint import open as open
from plait.api.configuration import load_config as load_config
from plait.api.run import Run as Run
from plait.api.run import train as train
from plait.api.samples import Sample as Sample
from plait.api.samples import samples as samples
from plait.errors import PlaitError as PlaitError

__version__: str
