"""Reports: what one run showed, for a log and for a browser, from its directory alone."""

from __future__ import annotations

from chaos.report.html import render_html
from chaos.report.run import ReportError
from chaos.report.text import render_text

__all__ = ["ReportError", "render_html", "render_text"]
