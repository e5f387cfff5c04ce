"""The albumentations classes that a configuration may name, and those it may not, with the reason.

The one open slot: any of ``ALBUMENTATIONS`` can stand in ``augment.transforms``. All take plain
values and draw from their own generator; none reads files, takes functions or asks the network.
Made for albumentations 2.0; a test holds both lists against the installed version. Not imported
here: the command line asks, too.
"""

from __future__ import annotations

ALBUMENTATIONS = frozenset(
    f"albumentations.{name}"
    for name in (
        # pixels
        *("AdditiveNoise", "AdvancedBlur", "AutoContrast", "Blur", "CLAHE", "ChannelDropout"),
        *("ChannelShuffle", "ChromaticAberration", "ColorJitter", "Defocus", "Downscale"),
        *("Emboss", "Equalize", "FancyPCA", "FromFloat", "GaussNoise", "GaussianBlur"),
        *("GlassBlur", "HEStain", "HueSaturationValue", "ISONoise", "Illumination"),
        *("ImageCompression", "InvertImg", "MedianBlur", "MotionBlur", "MultiplicativeNoise"),
        *("Normalize", "PlanckianJitter", "PlasmaBrightnessContrast", "PlasmaShadow"),
        *("Posterize", "RGBShift", "RandomBrightnessContrast", "RandomFog", "RandomGamma"),
        *("RandomGravel", "RandomRain", "RandomShadow", "RandomSnow", "RandomSunFlare"),
        *("RandomToneCurve", "RingingOvershoot", "SaltAndPepper", "Sharpen", "ShotNoise"),
        *("Solarize", "Spatter", "Superpixels", "ToFloat", "ToGray", "ToRGB", "ToSepia"),
        *("UnsharpMask", "ZoomBlur"),
        # pixels and what lies on them
        *("Affine", "AtLeastOneBBoxRandomCrop", "BBoxSafeRandomCrop", "CenterCrop"),
        *("CoarseDropout", "ConstrainedCoarseDropout", "Crop", "CropAndPad"),
        *("CropNonEmptyMaskIfExists", "CubicSymmetry", "D4", "ElasticTransform", "Erasing"),
        *("FrequencyMasking", "GridDistortion", "GridDropout", "GridElasticDeform"),
        *("HorizontalFlip", "LongestMaxSize", "MaskDropout", "Morphological", "NoOp"),
        *("OpticalDistortion", "Pad", "PadIfNeeded", "Perspective", "PiecewiseAffine"),
        *("PixelDropout", "RandomCrop", "RandomCropFromBorders", "RandomCropNearBBox"),
        *("RandomGridShuffle", "RandomResizedCrop", "RandomRotate90", "RandomScale"),
        *("RandomSizedBBoxSafeCrop", "RandomSizedCrop", "Resize", "Rotate", "SafeRotate"),
        *("ShiftScaleRotate", "SmallestMaxSize", "SquareSymmetry", "ThinPlateSpline"),
        *("TimeMasking", "TimeReverse", "Transpose", "VerticalFlip", "XYMasking"),
        # what runs others
        *("OneOf", "OneOrOther", "RandomOrder", "SelectiveChannelTransform", "Sequential"),
        "SomeOf",
    )
)

NOT_TAKEN = {
    "Lambda": "runs functions",
    "FDA": "reads reference images through a function",
    "HistogramMatching": "reads reference images through a function",
    "PixelDistributionAdaptation": "reads reference images through a function",
    "TextImage": "opens a font file",
    "OverlayElements": "wants further data with every image",
    "Mosaic": "wants further images with every image: augment.mosaic",
    "Compose": "is made by cvtrain, once around all transforms",
    "ReplayCompose": "is made by cvtrain, once around all transforms",
    "ToTensorV2": "makes tensors, as cvtrain does at the end",
    "ToTensor3D": "makes tensors, as cvtrain does at the end",
    "CenterCrop3D": "is for volumes",
    "CoarseDropout3D": "is for volumes",
    "Pad3D": "is for volumes",
    "PadIfNeeded3D": "is for volumes",
    "RandomCrop3D": "is for volumes",
    "BaseCompose": "is abstract",
    "BasicTransform": "is abstract",
    "DualTransform": "is abstract",
    "ImageOnlyTransform": "is abstract",
    "Transform3D": "is abstract",
}
"""Public transforms of albumentations that are left out."""
