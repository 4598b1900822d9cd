import pytest


@pytest.fixture(scope="session", autouse=True)
def _interpreter_patches_once():
    """Triton's interpreter searches the whole language for functions to replace at every call of a
    device function, also where the launch around it has replaced them: a third of its time."""
    try:
        import triton.language as tl
        from triton.runtime import interpreter

        patch = interpreter._patch_lang
    except (ImportError, AttributeError):
        yield
        return

    def patch_once(function):
        languages = [v for v in function.__globals__.values() if v is tl or v is tl.core]
        if any(tl.core.is_builtin(language.load) for language in languages):
            return patch(function)
        return None  # a launch comes here first, and puts everything back at its end

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(interpreter, "_patch_lang", patch_once)
        yield
