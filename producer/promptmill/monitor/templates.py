"""Our pages beside Flower's, and a link to them in Flower's navigation bar."""

from __future__ import annotations

from pathlib import Path

import flower
from tornado.template import Loader, Template

__all__ = ["OurTemplates"]

_FLOWERS = Path(flower.__file__).parent / "templates"
_OURS = Path(__file__).parent / "templates"

#: Where the links of the bar end. Flower offers no way to add one.
_END_OF_LINKS = "</ul>"

_LINK = """
        <li class="nav-item">
          <a class="nav-link{% if active_tab == 'fleet' %} active{% end %}" href="{{ reverse_url('fleet') }}"
            {% if active_tab == 'fleet' %}aria-current="page"{% end %}>Fleet</a>
        </li>
      """


class OurTemplates(Loader):
    """Flower's templates, and ours."""

    def __init__(self) -> None:
        super().__init__(str(_FLOWERS))

    def _create_template(self, name: str) -> Template:
        if (_OURS / name).is_file():
            return Template((_OURS / name).read_text(encoding="utf-8"), name=name, loader=self)
        if name == "navbar.html":
            before, end, after = (_FLOWERS / name).read_text(encoding="utf-8").partition(_END_OF_LINKS)
            return Template(f"{before}{_LINK}{end}{after}", name=name, loader=self)
        return super()._create_template(name)
