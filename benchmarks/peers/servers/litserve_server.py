"""LitServe with static batches: ``python litserve_server.py PORT``."""

import os
import sys

import litserve
from static_generation import StaticModel


class Generation(litserve.LitAPI):
    """Chats in; texts and the number of their tokens out."""

    def setup(self, _device: str) -> None:
        """Loads the model, in the process that computes."""
        self.model = StaticModel(os.environ["PEER_MODEL"], os.environ["PEER_DTYPE"], int(os.environ["PEER_THREADS"]))

    def decode_request(self, request) -> tuple[list[dict[str, str]], int]:
        """A chat of a request's body."""
        return request["messages"], request["max_tokens"]

    def predict(self, chats: list[tuple[list[dict[str, str]], int]]) -> list[tuple[str, int]]:
        """Texts of a batch, and their tokens."""
        return self.model.answer(chats)

    def encode_response(self, answer: tuple[str, int]) -> dict[str, str | int]:
        """A response's body."""
        return {"text": answer[0], "tokens": answer[1]}


if __name__ == "__main__":
    api = Generation(max_batch_size=int(os.environ["PEER_SLOTS"]), batch_timeout=0.1)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, timeout=600)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="warning")
