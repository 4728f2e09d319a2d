"""Publication of a model folder on the Hub: it is checked first, then sent in one commit."""

import contextlib
import json
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelCard,
    ModelCardData,
    constants,
    get_token,
)
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled, RevisionNotFoundError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError, safe_open
from transformers.dynamic_module_utils import get_relative_imports
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

import modeling_magic
from modeling_magic import MagicConfig, MagicPreTrainedModel

from ..data.fitting import num_rows
from ..files import read_text
from ..pretrained import pretrained_tokenizer
from .card import CARD_NAME, HEADS, card_template
from .contents import CONFIG_NAME, MANIFEST_NAME, mapping_at
from .export import OTHER_FILES, WEIGHT_FILES
from .model_folders import export_folder, has_other_weights, model_in
from .presets import load_preset


logger = logging.getLogger(__name__)

_AGAIN = "export the model again"


@dataclass(frozen=True)
class PushReport:
    """What was sent, or would be sent.

    Attributes:
        url: the page of the model, with the branch unless it is main.
        commit: the commit on the Hub, `None` if nothing was sent.
        files: the size in bytes of each file, by its path.
    """

    url: str
    commit: str | None
    files: dict[str, int]


def push_model(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    dry_run: bool = False,
    token: str | None = None,
    commit_message: str = "Upload model",
) -> PushReport:
    """Publishes an exported model folder and returns what was sent.

    The folder is checked before anything is sent. All files go into one commit, so a branch never holds half a model.
    Weights and tokenizer files of an older push that the folder does not hold are removed in the same commit. The card
    on the Hub is that of the folder, with the repository's name in place of the folder's. A model folder that is not
    an export, such as one from `Trainer.save_model`, and an export whose weights were trained further, are converted
    with `export_folder` and sent with a card of their own. The folder itself is not changed.

    Args:
        folder: a folder written by `export_model`, or the folder of a MAGIC child with its tokenizer.
        repo_id: "owner/name", or "name" for a repository of your own. It is created if it does not exist.
        private: whether a new repository is private.
        revision: a branch, created if it does not exist. Default: main.
        dry_run: whether to only check and list, which needs neither a network nor a token.
        token: the token. Default: that of `hf auth login` or HF_TOKEN.
        commit_message: the title of the commit.

    Raises:
        ValueError: the folder is not a complete export, the name is invalid, there is no token or no such namespace,
            or `private` is set for an existing public repository.
        PermissionError: the Hub refuses the token.
        ConnectionError: the Hub cannot be reached, or the connection broke.
    """
    folder = Path(model_in(folder))
    if repo_id.count("/") > 1:
        raise ValueError(f"{repo_id!r} is not the name of a repository; give OWNER/NAME")
    validate_repo_id(repo_id)
    send = partial(
        _push, repo_id=repo_id, private=private, revision=revision, dry_run=dry_run, token=token, title=commit_message
    )
    if (folder / MANIFEST_NAME).is_file() or not (folder / CONFIG_NAME).is_file():
        names = check_export(folder)
        if not has_other_weights(folder):
            return send(folder, names)
        logger.warning(
            f"the weights of {folder} are not those that its {MANIFEST_NAME} records, so its scores are not theirs; "
            f"it is sent with a new card and without those scores"
        )
    with TemporaryDirectory() as temporary:
        whole = export_folder(folder, Path(temporary) / folder.resolve().name)
        return send(whole, check_export(whole))


def _push(
    folder: Path,
    names: list[str],
    repo_id: str,
    private: bool,
    revision: str | None,
    dry_run: bool,
    token: str | None,
    title: str,
) -> PushReport:
    branch = revision or constants.DEFAULT_REVISION
    if dry_run:
        return _report(repo_id, branch, None, _contents(folder, names, repo_id))
    token = (token or get_token() or "").strip()
    if not token:
        raise ValueError("there is no token for the Hub; log in with `hf auth login` or set HF_TOKEN")
    # The HTTP client would quote such a token in its error.
    if not re.fullmatch("[!-~]+", token):
        raise ValueError("the token for the Hub contains spaces or other invalid characters; log in again")
    api = HfApi(token=token)
    with _told_in_one_line(api, repo_id, branch, token):
        repo_id = api.create_repo(repo_id, private=private or None, exist_ok=True).repo_id
        if branch != constants.DEFAULT_REVISION and not branch.startswith("refs/"):
            api.create_branch(repo_id, branch=branch, exist_ok=True)
        before = api.model_info(repo_id, revision=branch)
        if private and not before.private:
            raise ValueError(
                f"{repo_id} exists and is public, and --private does not change that; make it private in its settings "
                f"on the Hub, or use another name"
            )
        contents = _contents(folder, names, repo_id)
        stale = [item.rfilename for item in before.siblings or [] if item.rfilename not in contents]
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationAdd(name, item if isinstance(item, bytes) else str(item)) for name, item in contents.items()
        ]
        operations += [CommitOperationDelete(name) for name in stale if _matches(name, WEIGHT_FILES)]
        logger.info(f"sending to {repo_id}, branch {branch}: {', '.join(contents)}")
        commit = api.create_commit(
            repo_id, operations, commit_message=title, revision=branch, parent_commit=before.sha
        )
    return _report(repo_id, branch, commit.oid, contents)


def _contents(folder: Path, names: list[str], repo_id: str) -> dict[str, Path | bytes]:
    return {name: _card_for(folder / name, repo_id) if name == CARD_NAME else folder / name for name in names}


def _report(repo_id: str, branch: str, commit: str | None, contents: dict[str, Path | bytes]) -> PushReport:
    page = "" if branch == constants.DEFAULT_REVISION else f"/tree/{branch}"
    sizes = {name: len(item) if isinstance(item, bytes) else item.stat().st_size for name, item in contents.items()}
    return PushReport(f"{constants.ENDPOINT}/{repo_id}{page}", commit, sizes)


# ---- The folder ----


def check_export(folder: str | Path) -> list[str]:
    """Returns the files of an exported model folder that a push sends, as sorted relative paths.

    Hidden files and Python's caches are skipped.

    Raises:
        ValueError: the folder is not an export, lacks a file, or holds one that does not belong to an export.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}; give the folder of a model")
    if not (folder / MANIFEST_NAME).is_file():
        raise ValueError(
            f"{folder} is not an exported model: it has no {MANIFEST_NAME}; make one with `magic-nas export`"
        )
    links = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_symlink())
    if links := [name for name in links if not _is_litter(name)]:
        raise ValueError(
            f"{folder} holds links, which may point to anything on this machine: {_shown(links)}; push a copy with "
            f"files in their place, such as one made by `cp -rL`"
        )
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    names = [name for name in names if not _is_litter(name)]
    strays = [name for name in names if not _matches(name, WEIGHT_FILES + OTHER_FILES)]
    if strays:
        raise ValueError(
            f"{folder} holds files that do not belong to an exported model: {_shown(strays)}; move them elsewhere"
        )
    _read_json(folder / MANIFEST_NAME)
    model = _empty_model(folder)
    _check_weights_of(model, folder)
    _check_tokenizer(model.config, folder)
    _check_card(folder / CARD_NAME)
    return names


def check_weights(folder: str | Path) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every tensor in a model folder, read from the headers of its files.

    Raises:
        ValueError: a file is missing, truncated or otherwise not valid safetensors.
    """
    folder = Path(folder)
    paths = [folder / SAFE_WEIGHTS_NAME]
    if (folder / SAFE_WEIGHTS_INDEX_NAME).is_file():
        index = _read_json(folder / SAFE_WEIGHTS_INDEX_NAME)
        names = mapping_at(index, "weight_map").values()
        if not names or not all(isinstance(name, str) for name in names):
            raise ValueError(f"{folder / SAFE_WEIGHTS_INDEX_NAME} does not name the files of the weights; {_AGAIN}")
        paths = [folder / name for name in sorted(set(names))]
    shapes: dict[str, tuple[int, ...]] = {}
    for path in paths:
        if not path.is_file():
            raise ValueError(f"{folder} has no {path.name}; {_AGAIN}")
        try:
            with safe_open(path, framework="pt") as tensors:
                shapes |= {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged or truncated ({error}); {_AGAIN}") from None
    return shapes


def _shown(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(name, pattern) and name.count("/") == pattern.count("/") for pattern in patterns)


def _is_litter(name: str) -> bool:
    parts = name.split("/")
    hidden = any(part.startswith(".") for part in parts) and not _matches(name, OTHER_FILES)
    return hidden or "__pycache__" in parts


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); {_AGAIN}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} is not a JSON mapping; {_AGAIN}")
    return value


def _empty_model(folder: Path) -> MagicPreTrainedModel:
    """Returns the model that the folder's configuration describes, without weights."""
    config, values = load_preset(folder), _read_json(folder / "config.json")
    if config.is_supernet:
        raise ValueError(f"{folder} holds a super-net; export one of its children with `magic-nas export`")
    kinds = values.get("architectures")
    kind = kinds[0] if isinstance(kinds, list) and len(kinds) == 1 else None
    if not isinstance(kind, str) or kind not in HEADS:
        raise ValueError(f"config.json in {folder} does not name a MAGIC class (architectures); {_AGAIN}")
    code = {f"{item.rpartition('--')[2].partition('.')[0]}.py" for item in _classes_of(values)}
    if not code:
        raise ValueError(
            f"config.json in {folder} names no code (auto_map), so the model would not load without this package; "
            f"{_AGAIN}"
        )
    # Includes the files that they import: an older export has fewer files.
    there = [name for name in code if (folder / name).is_file()]
    code |= {f"{name}.py" for path in there for name in get_relative_imports(folder / path)}
    if missing := sorted(name for name in code if not (folder / name).is_file()):
        raise ValueError(f"{folder} lacks the model's code, {', '.join(missing)}; {_AGAIN}")
    with torch.device("meta"):
        return getattr(modeling_magic, kind)(config)


def _classes_of(values: Mapping[str, Any]) -> list[str]:
    """Returns the classes that config.json names in `auto_map`; a tokenizer may have two, either of them `None`."""
    named = mapping_at(values, "auto_map").values()
    return [item for one in named for item in (one if isinstance(one, list) else [one]) if isinstance(item, str)]


def _check_weights_of(model: MagicPreTrainedModel, folder: Path) -> None:
    found = check_weights(folder)
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    # A file holds only one of several tied tensors.
    tied = {name for pair in (model.all_tied_weights_keys or {}).items() for name in pair}
    for what, names in (
        ("lack", wanted.keys() - found.keys() - tied),
        ("hold in addition to the model's", found.keys() - wanted.keys()),
        ("have in another shape", {name for name in found.keys() & wanted.keys() if found[name] != wanted[name]}),
    ):
        if names:
            example = f"{min(names)}, {len(names)} in all"
            raise ValueError(f"the weights in {folder} do not fit its config.json: they {what} {example}; {_AGAIN}")


def _check_tokenizer(config: MagicConfig, folder: Path) -> None:
    if not (folder / "tokenizer_config.json").is_file():
        raise ValueError(f"{folder} has no tokenizer; {_AGAIN}")
    try:
        tokenizer = pretrained_tokenizer(folder, local_files_only=True)
    except ValueError as error:
        raise ValueError(f"{error}; {_AGAIN}") from None
    if num_rows(tokenizer) > config.vocab_size:
        raise ValueError(
            f"the tokenizer in {folder} has ids up to {num_rows(tokenizer) - 1} but the model has rows for only "
            f"{config.vocab_size} tokens; {_AGAIN}"
        )


def _check_card(path: Path) -> None:
    if not path.is_file():
        raise ValueError(f"{path.parent} has no model card, {CARD_NAME}; {_AGAIN}")
    text = read_text(path)
    left = [name for name in card_template().get_identifiers() if f"${name}" in text]
    try:
        data = ModelCard(text).data.to_dict()
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"the front matter of {path} is not a YAML mapping ({reason}); {_AGAIN}") from None
    if left or not {"license", "library_name", "tags"} <= data.keys():
        what = f"${left[0]}" if left else "license, library_name or tags"
        raise ValueError(f"the card {path} is not filled in: see {what}; {_AGAIN}")


def _card_for(path: Path, repo_id: str) -> bytes:
    """Returns the card with the repository's name in place of the folder's."""
    text = path.read_text(encoding="utf-8")
    example = re.search(r'"path/to/([^"\n]+)"', text)
    if example is not None:
        name, title = example[1], repo_id.rpartition("/")[2]
        text = text.replace(example[0], f'"{repo_id}"').replace(f"\n# {name}\n", f"\n# {title}\n", 1)
        card = ModelCard(text)
        if isinstance(card.data, ModelCardData) and card.data.eval_results and card.data.model_name == name:
            card.data.model_name = title
            text = str(card)
    return text.encode()


# ---- The Hub ----


@contextlib.contextmanager
def _told_in_one_line(api: HfApi, repo_id: str, branch: str, token: str) -> Iterator[None]:
    """Turns the client's errors into one line that says what to do and does not contain the token."""
    try:
        yield
    except OfflineModeIsEnabled:
        raise ConnectionError("the Hub's client is offline; unset HF_HUB_OFFLINE to push") from None
    except HfHubHTTPError as error:
        raise _refusal(api, repo_id, branch, error, token) from None
    except ValueError as error:
        raise ValueError(_one_line(error, token)) from None
    # hf_xet and the upload threads raise RuntimeError and subclasses of OSError.
    except (HTTPError, OSError, RuntimeError) as error:
        reason = _one_line(error.__cause__ or error, token)
        raise ConnectionError(
            f"the connection to {api.endpoint} broke ({reason}); {branch} of {repo_id} holds either the whole push or "
            f"nothing of it: run the same command again"
        ) from None


def _refusal(api: HfApi, repo_id: str, branch: str, error: HfHubHTTPError, token: str) -> Exception:
    status, said = error.response.status_code, _one_line(error.server_message or error, token)
    if status == 401:
        return PermissionError(
            f"the Hub refuses the token (401: {said}); make one with write permission at "
            f"{api.endpoint}/settings/tokens and log in with `hf auth login` or set HF_TOKEN"
        )
    if isinstance(error, RevisionNotFoundError):
        return ValueError(f"{repo_id} has no revision {branch!r}; name a branch")
    if status in (403, 404):
        return _no_permission(api, repo_id, f"{status}: {said}")
    if status in (409, 412):
        return ConnectionError(f"{branch} of {repo_id} has changed in the meantime ({status}: {said}); push again")
    if status < 500 and status != 429:
        return ValueError(f"the Hub rejects the push ({status}: {said})")
    return ConnectionError(
        f"the Hub failed ({status}: {said}); {branch} of {repo_id} holds either the whole push or nothing of it: run "
        f"the same command again"
    )


def _no_permission(api: HfApi, repo_id: str, said: str) -> Exception:
    try:
        account = api.whoami()
    except (HTTPError, OSError):
        return PermissionError(f"the Hub does not let this token write to {repo_id} ({said})")
    namespaces = [account["name"], *(org["name"] for org in account.get("orgs", []))]
    namespace = repo_id.partition("/")[0]
    if "/" in repo_id and namespace not in namespaces:
        return ValueError(
            f"{account['name']} cannot write to the namespace {namespace!r} ({said}); choose one of: "
            f"{', '.join(namespaces)}"
        )
    return PermissionError(
        f"the token of {account['name']} may not write to {repo_id} ({said}); make one with write permission at "
        f"{api.endpoint}/settings/tokens"
    )


def _one_line(error: BaseException | str, token: str) -> str:
    return " ".join((str(error) or type(error).__name__).replace(token, "***").split())
