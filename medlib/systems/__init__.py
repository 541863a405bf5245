"""Every auditor that the benchmark compares, behind one interface; adding one takes a few lines.

    @register("always-error")
    def always_error(session: Session) -> System:
        \"\"\"What an auditor who trusts nobody achieves.\"\"\"
        return System("always-error", "1", lambda suite: np.zeros(len(suite)))

A name with a colon, such as ``openai:gpt-4o``, is looked up by what stands before the colon.
"""

from medlib.systems.registry import MODULES, REGISTRY, System, is_system, names, register
from medlib.systems.session import Session

__all__ = ["MODULES", "REGISTRY", "Session", "System", "is_system", "names", "register"]
