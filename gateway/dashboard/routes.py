"""`/dashboard`: the page and its data.

Knows HTTP. Does not know figures. The page loads nothing from elsewhere, and its content security policy forbids it.
"""

from importlib import resources

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from gateway.dashboard.feed import Feed

POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:;"
    " frame-ancestors 'none'"
)
HEADERS = {"content-security-policy": POLICY, "cache-control": "no-store"}


def dashboard_routes(feed: Feed) -> list[Route]:
    """Return the routes of the operations view."""
    page = resources.files("gateway.dashboard").joinpath("page.html").read_text(encoding="utf-8")

    async def show(_request: Request) -> Response:
        return HTMLResponse(page, headers=HEADERS)

    async def tell(_request: Request) -> Response:
        return JSONResponse(feed.data(), headers=HEADERS)

    return [Route("/dashboard", show, methods=["GET"]), Route("/dashboard/data", tell, methods=["GET"])]
