"""Garder un réseau, comprimé ou non, dans un fichier safetensors, et le retrouver au bit près.

Le fichier ne contient que des nombres : jamais de pickle, donc jamais de code. Une empreinte y tient lieu de sceau. La
disposition des codes (forme, bits, échelles) y est écrite : des octets seuls ne la disent pas.
"""

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from .layers import PackedTensor, meta_copy

Metadata = dict[str, str]


def read_safetensors(path: Path, sha256: str | None = None) -> tuple[dict[str, Tensor], Metadata]:
    """Lit un fichier safetensors et ses métadonnées, après avoir vérifié l'empreinte du fichier si elle est donnée.

    Parameters
    ----------
    path : Path
    sha256 : str, optionnel

    Returns
    -------
    dict nom → Tensor, dict de textes

    Raises
    ------
    FileNotFoundError
        Le fichier n'existe pas.
    ValueError
        L'empreinte diffère, ou le fichier est tronqué ou n'est pas un safetensors.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FileNotFoundError(f"{path} : fichier introuvable.")
    if sha256 is not None:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != sha256:
            raise ValueError(f"{path} : empreinte sha256 {found}, attendu {sha256} ; ce n'est pas le fichier public.")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} : fichier tronqué ou qui n'est pas un safetensors ({error}).") from error


def save_weights(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Écrit les paramètres et les tampons d'un réseau : codes serrés, échelles et biais tels qu'ils sont en mémoire.

    Le fichier n'apparaît que complet : si l'écriture échoue, l'ancien demeure. Un tenseur partagé n'est écrit qu'une
    fois.

    Parameters
    ----------
    model : nn.Module
    path : chemin
        Remplacé s'il existe.

    Raises
    ------
    TypeError
        `model` n'est pas un nn.Module.
    OSError
        Dossier absent, disque plein, droits insuffisants.
    """
    from safetensors.torch import save

    path = Path(path)
    state = check_model(model).state_dict()
    aliases = shared(state)
    kept = {name: t.detach().cpu() for name, t in state.items() if name not in aliases}
    tensors = {name: t.clone(memory_format=torch.contiguous_format) for name, t in kept.items()}  # plus de vues
    described = json.dumps({"alias": aliases, "codes": layouts(model)}, ensure_ascii=False)
    content = save(tensors, {"lrq": described + digest(tensors, described)})  # une seule clé : leur ordre varierait
    write_whole({path: content})


def write_whole(contents: Mapping[Path, bytes]) -> None:
    """Écrit des fichiers à côté de leur place, puis les y met : les anciens demeurent tant que tout n'est pas écrit."""
    for path in contents:
        if not path.parent.is_dir():
            raise FileNotFoundError(f"{path.parent} : dossier introuvable.")
    waiting = {path: path.with_name(f".{path.name}.{secrets.token_hex(4)}") for path in contents}
    try:
        for path, whole in waiting.items():
            with whole.open("xb") as file:
                file.write(contents[path])
        for path, whole in waiting.items():
            os.replace(whole, path)
    except BaseException:
        for whole in waiting.values():
            whole.unlink(missing_ok=True)
        raise


def load_weights(model: nn.Module, path: str | os.PathLike[str]) -> nn.Module:
    """Charge dans un réseau ce que :func:`save_weights` a écrit. S'il est refusé, le réseau n'a pas changé.

    Parameters
    ----------
    model : nn.Module
        De la même structure ; une couche pas encore quantifiée prend les codes du fichier, s'ils ont ses bits, ses
        formes et ses échelles.
    path : chemin

    Returns
    -------
    nn.Module
        `model`.

    Raises
    ------
    TypeError
        `model` n'est pas un nn.Module.
    FileNotFoundError
        Le fichier n'existe pas.
    ValueError
        Fichier tronqué ou modifié ; tenseur absent, en trop, d'une autre forme ou d'un autre dtype ; codes rangés
        autrement.
    """
    path = Path(path)
    check_model(model)
    tensors, metadata = read_safetensors(path)
    described, seal = metadata.get("lrq", "")[:-64], metadata.get("lrq", "")[-64:]
    if seal != digest(tensors, described):
        raise ValueError(
            f"{path} : le contenu ne correspond pas à son empreinte ; il n'est pas de save_weights, ou a été modifié."
        )
    recorded = json.loads(described)
    tensors |= {name: tensors[source] for name, source in recorded["alias"].items()}
    blank = meta_copy(model)
    with contextlib.suppress(RuntimeError):  # ce qui ne va pas se dit plus bas, en français
        blank.load_state_dict({name: t.to("meta") for name, t in tensors.items()}, strict=False)
    found = recorded["codes"]
    for name, layout in layouts(blank).items():
        if found.get(name, layout) != layout:
            raise ValueError(f"{path} : {name} : reçu des codes rangés {found[name]}, attendu {layout}.")
    compare(str(path), tensors, blank.state_dict())
    for name, source in shared(model.state_dict()).items():
        if name in tensors and tensors[name] is not tensors[source] and not torch.equal(tensors[name], tensors[source]):
            raise ValueError(f"{path} : {name} et {source} diffèrent, mais le réseau n'en fait qu'un tenseur.")
    model.load_state_dict(tensors)
    return model


def shared(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Les tenseurs qui en sont un autre, sous un second nom : ce nom → le premier."""
    first: dict[tuple[object, ...], str] = {}
    aliases = {}
    for name, t in state.items():
        place = (t.untyped_storage().data_ptr(), t.storage_offset(), t.dtype, t.shape, t.stride())
        if t.numel() and place in first:
            aliases[name] = first[place]
        else:
            first[place] = name
    return aliases


def digest(tensors: Mapping[str, Tensor], described: str) -> str:
    """Empreinte d'une description et de tenseurs : noms, types, formes, octets, dans l'ordre des noms."""
    seal = hashlib.sha256(described.encode())
    for name, t in sorted(tensors.items()):
        seal.update(f"{name} {t.dtype} {tuple(t.shape)}".encode())
        seal.update(t.reshape(-1).view(torch.uint8).numpy().data)
    return seal.hexdigest()


def layouts(model: nn.Module) -> dict[str, str]:
    """Comment chaque tenseur quantifié range ses codes."""
    packed = {name: module for name, module in model.named_modules() if isinstance(module, PackedTensor)}
    return {name: module.layout() for name, module in packed.items()}


def compare(path: str, found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Exige les mêmes noms, les mêmes formes et les mêmes types."""
    for name, t in expected.items():
        if name not in found:
            raise ValueError(f"{path} : il y manque {name}, {tuple(t.shape)}.")
        if found[name].shape != t.shape:
            raise ValueError(f"{path} : {name} : reçu la forme {tuple(found[name].shape)}, attendu {tuple(t.shape)}.")
        if found[name].dtype != t.dtype:
            raise ValueError(f"{path} : {name} : reçu des éléments {found[name].dtype}, attendu {t.dtype}.")
    extra = sorted(found.keys() - expected.keys())
    if extra:
        raise ValueError(f"{path} : {extra[0]} n'existe pas dans le réseau.")


def check_model(model: object) -> nn.Module:
    """Rend `model` si c'est un nn.Module."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model : reçu {type(model).__name__}, attendu nn.Module.")
    return model
