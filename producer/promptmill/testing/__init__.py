"""For your tests: a worker whose answers you set, on a broker of its own. It needs neither torch nor a server.

    pip install 'promptmill[embedded]'

See docs/apps.md; ``promptmill.testing.fixtures`` has the same as pytest fixtures.
"""

from promptmill.testing.answers import Answer, Answers
from promptmill.testing.stub_worker import StubWorker

__all__ = ["Answer", "Answers", "StubWorker"]
