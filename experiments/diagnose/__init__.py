"""Is a classifier good enough to guide? Measured on labelled images, without sampling: `ed-dpm diagnose`.

    result = diagnose(model, {"ours": classifier}, diffusion, images, labels)
    print("\\n".join(result["verdict"]))
    write_report(result, Path("runs/diagnose"))
"""

from experiments.diagnose.diagnosis import diagnose
from experiments.diagnose.report import write_report

__all__ = ["diagnose", "write_report"]
