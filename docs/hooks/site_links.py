"""Conversion of links between files of the repository into links between pages of the site."""

import re
from collections.abc import Mapping
from posixpath import dirname, join, normpath, relpath


_FENCE = re.compile(r"^(`{3,}).*?^\1`*$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(\]\()([^)\s]+)(\))")
_ELSEWHERE = re.compile(r"[a-z]+:|#|/")


def site_links(markdown: str, path: str, place: str, places: Mapping[str, str]) -> str:
    """Returns a page with links that work in the site.

    A link to a file that the site does not have stays unchanged, so a strict build fails.

    Args:
        markdown: the page, with links relative to its file.
        path: the path of the page's file in the repository.
        place: the path of the page in the site.
        places: by file, the paths in the site of pages from outside docs/.
    """

    def rewritten(link: re.Match[str]) -> str:
        name, hash_sign, anchor = link[2].partition("#")
        if _ELSEWHERE.match(link[2]):
            return link[0]
        target = normpath(join(dirname(path), name))
        if target in places:
            target = places[target]
        elif target.startswith("docs/"):
            target = target.removeprefix("docs/")
        else:
            return link[0]
        return f"{link[1]}{relpath(target, dirname(place) or '.')}{hash_sign}{anchor}{link[3]}"

    # Links in code blocks stay unchanged.
    parts, end = [], 0
    for fence in _FENCE.finditer(markdown):
        parts += [_LINK.sub(rewritten, markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, _LINK.sub(rewritten, markdown[end:])])
