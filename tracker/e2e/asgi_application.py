"""An ASGI application with umami-asgi, which sends its page views to the API argv[1] for the website argv[2].

Prints its port on a line, then serves until it is ended.
"""

import socket
import sys

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from umami_asgi import UmamiMiddleware

endpoint, website = sys.argv[1:]


async def page(request):
    return PlainTextResponse(f"This is {request.url.path}")


app = Starlette(
    routes=[Route("/{path:path}", endpoint=page)],
    middleware=[Middleware(UmamiMiddleware, api_endpoint=endpoint, website_id=website)],
)
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])
