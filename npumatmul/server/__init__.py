"""An HTTP server for language models, with the APIs of OpenAI and Ollama; extra ``server``."""

from npumatmul.extras import explain_missing

try:
    from npumatmul.server.server import Server
    from npumatmul.server.settings import Settings
except ImportError as error:
    explain_missing(error, "npumatmul.server")
    raise

__all__ = ["Server", "Settings"]
