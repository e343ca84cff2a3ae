"""Harden ONNX models against bit flips in stored parameters, and measure how much it helped.

The commands and their Python equals: `proact_onnx.inspection.inspect_model`,
`proact_onnx.harden.harden`, `proact_onnx.campaign.Campaign` and `proact_onnx.verify.verify`.
"""
