"""A notebook's cells: many prompts with a progress bar, tokens a second and failures.

pip install promptmill tqdm; open it in Jupyter (jupytext) or VS Code, or run it as a script.
"""

# %%
from collections.abc import Sequence
from typing import Any

from tqdm.auto import tqdm

from promptmill import Client, GenerationResult, MapProgress

client = Client()  # PROMPTMILL_BROKER_URL and PROMPTMILL_MODEL; or Client("redis://gpu-queue:6379/0", model="smollm2")


# %%
def generate_all(prompts: Sequence[str], **options: Any) -> list[GenerationResult]:
    """The results in the order of the prompts. Interrupting the cell cancels what is left."""
    with tqdm(total=len(prompts), unit="prompt") as bar:

        def show(progress: MapProgress) -> None:
            bar.set_postfix({"tokens/s": round(progress.tokens_per_s), "failed": progress.failed}, refresh=False)
            bar.update(progress.done - bar.n)

        return list(client.map(prompts, on_progress=show, on_error="yield", **options))


# %%
animals = ["cat", "dog", "mouse", "elephant"]
results = generate_all([f"A poem about a {animal}:" for animal in animals * 25], max_tokens=64, temperature=0.7)

# %%
for result in results[:4]:
    print(result.error or result.text)
