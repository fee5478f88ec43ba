"""Pictures that noise, blur, light or compression have spoilt: ImageNet-C's own files, and any set made like them."""
