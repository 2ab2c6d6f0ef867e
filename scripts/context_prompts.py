"""Show the context-rich prompts of masked language modelling (utils/losses/context_prompts.py).

python -m scripts.context_prompts --kind pets --type worn --count 20
python -m scripts.context_prompts --summary
"""

import random
from dataclasses import dataclass

from utils.common.errors import exit_on_user_error
from utils.common.flags import check_fields, option, parse, seed_option
from utils.losses.context_prompts import KINDS, TYPES, prompts_of


@dataclass(frozen=True)
class Config:
    kind: str = option("pets", "kind of concept", choices=KINDS)
    type: str = option("relations", "type of prompt", choices=TYPES)
    count: int = option(20, "prompts to print", minimum=1)
    seed: int = seed_option("seed of the choice")
    subject: str = option("<new1> dog", "the concept in the prompts")
    summary: bool = option(False, "print the number of prompts of each kind and type instead")

    def __post_init__(self) -> None:
        check_fields(self)


def summary() -> str:
    """The number of distinct prompts: a line a type, a column a kind."""
    counts = {kind: [len(set(prompts_of(kind, name))) for name in TYPES] for kind in KINDS}
    lines = [" " * 12 + "".join(f"{kind:>8}" for kind in KINDS)]
    for row, name in enumerate(TYPES):
        lines.append(f"{name:12}" + "".join(f"{counts[kind][row]:8,}" for kind in KINDS))
    return "\n".join([*lines, f"{'all':12}" + "".join(f"{sum(counts[kind]):8,}" for kind in KINDS)])


def main(argv: list[str] | None = None) -> None:
    config = parse(Config, argv, __doc__)
    if config.summary:
        print(summary())
        return
    prompts = prompts_of(config.kind, config.type)
    chosen = random.Random(config.seed).sample(prompts, min(config.count, len(prompts)))
    print("\n".join(prompt.format(config.subject) for prompt in chosen))


if __name__ == "__main__":
    exit_on_user_error(main)
