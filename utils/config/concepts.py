"""The concepts to learn, as the flags or a JSON list describe them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.common.errors import UserError, short
from utils.common.flags import option
from utils.common.limits import check_text
from utils.concepts.names import check_absent, check_apart, check_token

if TYPE_CHECKING:
    from utils.config.train_config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Concept:
    """One thing to learn: its token, the word the token starts from, its class, its images and their caption.

    subject: how captions name it, "<new1> dog". class_data_dir: None without prior preservation.
    """

    modifier_token: str
    initializer_token: str
    cls_token: str | None
    instance_prompt: str
    instance_data_dir: Path
    class_prompt: str | None = None
    class_data_dir: Path | None = None
    subject: str = ""


def read_concepts_list(path: Path) -> list[dict[str, str]]:
    """A JSON list of objects with text values; UserError otherwise.

    Keys: instance_data_dir, and optionally instance_prompt, class_prompt, class_data_dir.
    """
    required, allowed = {"instance_data_dir"}, {"instance_prompt", "class_prompt", "class_data_dir"}
    try:
        entries = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise UserError(f"--concepts_list {path} does not exist: give a JSON file") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"--concepts_list {path} is not readable as JSON ({short(error, 200)})") from error
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(
            f"--concepts_list {path} must hold a list of objects with {', '.join(sorted(required))}"
        )
    for number, entry in enumerate(entries, start=1):
        if missing := required - entry.keys():
            raise UserError(f"{path}: concept {number} lacks {', '.join(sorted(missing))}")
        if unknown := entry.keys() - required - allowed:
            names = ", ".join(sorted(required | allowed))
            raise UserError(
                f"{path}: concept {number} has {short(', '.join(sorted(unknown)))}; only {names} are allowed"
            )
        if not all(isinstance(value, str) for value in entry.values()):
            raise UserError(f"{path}: concept {number} has a value that is not text in quotes")
        for key, value in entry.items():
            check_text(f"{path}: concept {number}: {key}", value)
    return entries


@dataclass(frozen=True)
class ConceptFlags:
    """The concepts to learn, by flags or by a list."""

    heading = "concept"

    instance_data_dir: str | None = option(
        None,
        "folder with the concept's images; dog.txt next to dog.jpg, or a line of metadata.jsonl (file_name, "
        "text), is an image's own caption, in which the token or the class word stands for the concept",
        set_by_evaluation=True,
    )
    instance_prompt: str | None = option(
        None,
        "caption of images that have none of their own (default: a photo of a <new1> dog, with your token "
        "and class)",
        set_by_evaluation=True,
    )
    class_data_dir: str | None = option(
        None,
        "folder of the class images, whose captions may lie next to them too (default: inside output_dir)",
    )
    class_prompt: str | None = option(None, "prompt of the class images, e.g. 'a photo of a dog'")
    concepts_list: str | None = option(
        None, "JSON list of concepts, instead of the four flags above", set_by_evaluation=True
    )
    modifier_token: str = option("<new1>", "new token of each concept, joined by +", set_by_evaluation=True)
    initializer_token: str | None = option(
        None,
        "words the new tokens start from, joined by +; a word of several pieces gives their mean (default: "
        "the method's rare words, or the class)",
    )
    num_vectors: int = option(
        1, "learned vectors of each token, which stays one word in prompts", minimum=1, below=65
    )
    cls_token: str | None = option(
        None, "class word of each concept, joined by +, e.g. 'teddy bear+barn'", set_by_evaluation=True
    )

    @property
    def modifier_tokens(self) -> list[str]:
        return self.modifier_token.split("+")

    @property
    def cls_tokens(self) -> list[str | None]:
        """One class word per modifier token; None where --cls_token was not given."""
        return self.cls_token.split("+") if self.cls_token is not None else [None] * len(self.modifier_tokens)

    def check_concept(self) -> None:
        """Raise UserError for tokens that are not words, classes that do not match, sources that clash."""
        tokens = self.modifier_tokens
        for token in tokens:
            check_token("--modifier_token", token)
        if len(set(tokens)) < len(tokens):
            raise UserError(f"--modifier_token {self.modifier_token} repeats one: give each concept its own")
        words = [word for word in self.cls_tokens if word and word.strip()]
        if self.cls_token is not None and not len(words) == len(self.cls_tokens) == len(tokens):
            raise UserError(
                f"--cls_token '{short(self.cls_token)}': need one class for each of {'+'.join(tokens)}"
            )
        for name in ("instance_data_dir", "instance_prompt", "class_data_dir", "class_prompt"):
            if getattr(self, name) is not None and self.concepts_list is not None:
                raise UserError(f"--concepts_list and --{name} contradict each other: give one of them")
        if self.instance_data_dir is None and self.concepts_list is None:
            raise UserError("--instance_data_dir is missing: give it, or a --concepts_list")


def concepts_of(config: "TrainConfig") -> list[Concept]:
    """The concepts of a training configuration, from its flags or --concepts_list, one per modifier token.

    Raises UserError for a broken list, a number of concepts other than that of tokens, a prompt without
    its token, and prior preservation without a class prompt.
    """
    entries = [vars(config)]
    if config.concepts_list is not None:
        entries = read_concepts_list(Path(config.concepts_list))
    if len(entries) != len(config.modifier_tokens):
        raise UserError(
            f"--modifier_token {config.modifier_token} for {len(entries)} concept(s): give one each"
        )
    concepts = [_concept(config, index, entry) for index, entry in enumerate(entries)]
    check_apart(config.modifier_tokens, [concept.instance_prompt for concept in concepts])
    check_apart(config.modifier_tokens, filter(None, [config.validation_prompt]))
    return concepts


def _concept(config: "TrainConfig", index: int, entry: dict[str, Any]) -> Concept:
    token, word = config.modifier_tokens[index], config.cls_tokens[index]
    check_absent(config.modifier_tokens, "--cls_token", word)
    check_absent(config.modifier_tokens, "class_prompt", entry.get("class_prompt"))
    subject = config.recipe.subject.format(token=token, cls=word or "").strip()
    prompt = entry.get("instance_prompt") or f"a photo of a {subject}"
    if token not in prompt:
        raise UserError(f"'{short(prompt)}' lacks {token}: write it before the class word")
    class_prompt = entry.get("class_prompt") or (f"a photo of a {word}" if word else None)
    if config.uses_prior and not class_prompt:
        raise UserError(f"prior preservation needs a class for {token}: give --cls_token, or class_prompt")
    class_data_dir = entry.get("class_data_dir") or Path(config.output_dir) / "class_images" / str(index)
    return Concept(
        modifier_token=token,
        initializer_token=config.initializer_tokens[index],
        cls_token=word,
        subject=subject,
        instance_prompt=prompt,
        instance_data_dir=Path(entry["instance_data_dir"]),
        class_prompt=class_prompt if config.uses_prior else entry.get("class_prompt"),
        class_data_dir=Path(class_data_dir) if config.uses_prior else None,
    )
