"""reward.py: what each rule of equality accepts and refuses; no text can harm the checker."""

# ruff: noqa: E501  (a line of the table of rules is one truth with all its answers)
import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import reward
from reward import Grader, equal, extract, judge, score

SCALING_DATA = os.environ.get("SCALING_DATA")
ROOT = Path(reward.__file__).parent
VERDICTS = {"right", "wrong", "no_answer", "unparsed", "too_large", "timeout", "crashed"}

# A line is a truth, then answers to it: right ones after "  =  ", wrong ones after "  !  ".
# The comment on a rule names a mutation that its lines catch.
RULES = {
    "spelling": r"""
        \frac12  =  \frac{1}{2}  =  \dfrac 1 2  =  \frac{1}2  =  $\frac12$  =  \(\frac12\)  =  \[\tfrac12\]  =  \frac12.
        \frac12  =  \\frac{1}{2}
        \\frac{1}{2}  =  \frac12  =  {1 \over 2}  =  (1/2)  =  \frac12\,  =  \displaystyle\frac12  =  1/2  =  .5  =  ½
        \\frac{1}{2}  !  \frac21
        2\pi  =  2π  =  2 \cdot \pi  =  2 \, \pi  =  \pi*2  !  \pi^2
        x^2  =  x²  =  x^{2}  =  x**2  =  x \times x  !  2x
        \\{1,2\\}  =  \{1,2\}  =  \left\{1, 2\right\}  =  \lbrace 1,2\rbrace
        \pi R^2  =  \piR^2  =  \pi R^{2}
        3  =  ３  =  \boxed{3}  =  +3  =  3.  =  03  !  −3
        \begin{pmatrix} 1 \\ 2 \end{pmatrix}  =  \begin{pmatrix}1\\2\end{pmatrix}
        \begin{pmatrix} 1 \\ 2 \end{pmatrix}  =  \\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}""",
    "numbers are exact": r"""
        54  !  204_{\text{six}}
        4/33  =  0.1212\ldots  !  0.12
        0.12  !  0.12...
        15  !  \gcd(30,44)
        5000000  =  5 \text{ Million}  =  5 million  !  5  !  5 \text{ thousand}
        5120  !  5\quad120
        \frac13  =  2/6  =  0.\overline{3}  =  0.\bar{3}  =  0.(3)  =  0.333...  =  0.3\overline{3}  !  0.333333333333
        \frac13  !  33.3\%
        \frac{3}{11}  =  0.\overline{27}  =  .\overline{27}  !  0.27
        0.3  !  0.\overline{3}  !  0.301
        857500  =  857{,}500  =  857,500  =  857\,500  =  857 500  =  8.575 \times 10^5  =  8.575e5  !  857499
        857500  !  857500.01  !  8575
        1000000  =  1,000,000  =  1\,000\,000  =  10^6  =  1 \text{ million}  =  1 million people  !  1,000,001  !  1
        \$1,000,010  =  1,000,010  =  1000010  !  \$1,010,000
        12345.67  =  12,345.67  !  12345.66
        \frac{1}{2^{98}}  =  2^{-98}  =  \frac{2}{2^{99}}  !  \frac{1}{2^{99}}
        1-\frac{1}{2^{200}}  =  \frac{2^{200}-1}{2^{200}}  !  1
        1  !  1-2^{-2000}  !  1-\exp(-2000)  !  1-2^{-30000}
        \frac{\pi}{2^{98}}  =  \frac{2\pi}{2^{99}}  !  \frac{\pi}{2^{99}}
        2022!-1  =  -1+2022!  =  2022 \cdot 2021! - 1  !  2022!
        \frac{2008^{2006}}{2}  =  1004\cdot 2008^{2005}  !  \frac{2008^{2005}}{2}
        2^{2007}\sqrt{3}-1  =  2^{2006}\cdot 2\sqrt{3}-1  !  2^{2007}\sqrt3
        e^{23111}  !  e^{23110}
        \binom{10}{3}  =  120  =  {10 \choose 3}  =  \frac{10!}{3!7!}  !  \binom{10}{4}
        15  =  5!!  =  \lfloor 15.7 \rfloor  =  \lceil 14.2 \rceil  !  5!
        \frac74  =  1\frac34  =  1 \frac{3}{4}  =  1 3/4  =  1.75  !  \frac34  !  1\cdot\frac34
        -\frac74  =  -1\frac{3}{4}  =  \frac{-7}{4}  =  \frac{7}{-4}  !  -\frac14
        54  =  204_5  =  204_{5}  !  204_6
        204_5  =  204_{5}  =  204  !  204_6  !  205_5
        \frac13  !  0.33333333333333333333333333333333333333333333333333333333333333333333333333333333
        (10^{70}+1)^2-10^{140}  =  2\cdot 10^{70}+1  !  2\cdot 10^{70}
        3  =  \lfloor 30\cdot 0.1\rfloor  =  \lceil 2.9999 \rceil  !  \lfloor 2.9999 \rfloor""",  # a tolerance of 1e-6; floats
    "decimals round only to decimal truths": r"""
        12.35  =  12.345  =  \frac{247}{20}  !  12.344  !  12.3
        2.13  =  \frac{17}{8}  =  2.125  !  2.12
        \sqrt{2}  !  1.414  !  1.4142135623730951
        \pi  =  \pi \approx 3.14  !  3.14  !  22/7  !  3.14159265358979
        1.41  =  \sqrt2  =  1.414  !  1.42  !  1.4
        3.14  =  \pi  =  22/7  =  3.1416  !  3.15  !  3  !  3.1
        0.667  =  2/3  !  0.666  !  0.67
        2.8  =  2.80  !  2.81  !  \sqrt{7.84}\cdot1.001
        10000  !  10000.0001  !  9999.9999""",  # rounding that goes by the answer's decimals
    "expressions": r"""
        \lfloor x/2\rfloor+1  =  1+\lfloor x/2\rfloor  !  \lceil x/2\rceil
        k  !  \min(k,40)
        \lfloor n/60\rfloor  !  \lfloor n/50\rfloor
        \frac\pi4  =  \pi/4  !  \frac\pi4, k\in\mathbb{Z}
        ab(a-b)  !  ab-ab
        AB-CD  !  ab-cd  !  ABCD
        pqrs  =  srqp  !  pqr  !  PQRS
        (x+1)^2  =  x^2+2x+1  =  (1+x)(x+1)  !  x^2+1  !  (x-1)^2  !  (y+1)^2  !  2(x+1)
        \frac{a+b}{c}  =  \frac ac+\frac bc  =  (a+b)/c  !  a+\frac bc  !  \frac{a+b}{C}
        6(x+1)  =  6x+6  !  6x+1
        1/2x  =  \frac{x}{2}  =  \frac{1}{2}x  !  2x
        -12mpq\sqrt[4]{5p^3}  =  -12 m p q \sqrt[4]{5 p^{3}}  !  12mpq\sqrt[4]{5p^3}
        6\sqrt3  =  \sqrt{108}  =  6 \cdot 3^{1/2}  =  \frac{18}{\sqrt3}  !  6  !  \sqrt3  !  6\sqrt2
        2\sqrt[3]2  =  \sqrt[3]{16}  !  2\sqrt2
        -2  =  \sqrt[3]{-8}  =  (-8)^{1/3}  !  \sqrt{4}
        |x|  =  \sqrt{x^2}  !  x
        xy  !  |xy|  !  |x|y  !  \sqrt{x^2y^2}
        xyz  !  |xyz|  !  x|yz|
        x|y|  =  |y|x  !  xy
        \sqrt{xy}  =  \sqrt x\sqrt y  !  \sqrt{x}y
        1+\sqrt2  =  \sqrt{3+2\sqrt2}  !  1-\sqrt2
        \frac{1}{4}(\sqrt5-1)  =  \sin 18^\circ  !  \cos 18^\circ
        1  =  \sin^2 x+\cos^2 x  =  \sqrt[3]{2+\sqrt5}+\sqrt[3]{2-\sqrt5}  =  0.9\overline{9}  =  \ln e  =  -e^{i\pi}
        1  !  \sin^2 x
        \sin 2x  =  2\sin x\cos x  =  2 \sin(x) \cos(x)  !  \sin x^2  !  2\sin x
        \arcsin x  =  \sin^{-1} x  !  \frac{1}{\sin x}
        \frac{\pi}{4}  =  \arctan 1  =  \tan^{-1}(1)  =  \arctan\frac12+\arctan\frac13  =  0.25\pi
        3\ln 2  =  \ln 8  =  \ln(8)  =  \log 8  !  \ln 6
        \log_2 3  =  \frac{\log 3}{\log 2}  =  \frac{1}{\log_3 2}  !  \log_3 2
        2  =  \log 100  =  \lg 100  =  \log_{10} 100  =  \log_3 9  !  \ln 100
        2i  =  (1+i)^2  =  \sqrt{-4}  !  -2i  !  2
        1+\sqrt3 i  =  2e^{i\pi/3}  =  2\text{cis}(60^\circ)  =  \sqrt{3} i+1  !  1-\sqrt3i
        5  =  |3+4i|  !  3+4i
        2^{n+1}  =  2\cdot2^n  =  4 \cdot 2^{n-1}  !  2^n
        \frac{n(n+1)}{2}  =  \binom{n+1}{2}  !  \binom n2
        (n+1)!  =  (n+1)n!  !  n!+1
        \lceil\frac n2\rceil  =  \lfloor\frac{n+1}{2}\rfloor  !  \lfloor\frac n2\rfloor
        1  =  (-1)^{2n}  =  \cos 2\pi n  !  (-1)^n
        |n|  =  \sqrt{n^2}  !  n
        f(x)+1  =  1+f(x)  !  f(1)+x  !  g(x)+1
        2k+1  !  2k-1
        x_1  =  x_{1}  !  x_2  !  x
        a  !  \alpha  !  A
        6W  =  -6[-W]""",  # one random point; integers only; positive points only
    "names": r"""
        3  =  f^{-1}(2)=3  !  f^{-1}(2)
        \begin{pmatrix}1&2\\3&4\end{pmatrix}  =  A^{-1} = \begin{pmatrix}1&2\\3&4\end{pmatrix}
        cx  =  f(x)=cx \text{ for some constant } c
        12  =  \text{Area} = 12  =  \mathrm{Area}=12  =  x_{\max} = 12  =  x_{\text{max}}=12  =  A'B'=12  !  \text{Area} = 13
        2x  =  f'(x)=2x  =  y'=2x  =  f^{\prime}(x) = 2x  !  f'(x)=3x
        a_1=1,a_2=2  =  a_2=2,a_1=1  !  a_1=2,a_2=1
        5  =  x=5  =  x = 5  =  AB = 5  =  |AB| = 5  =  f(2)=5  =  2+3=5  =  x = \frac{10}{2} = 5  !  x=6
        5  !  5=6  !  x=5=6  !  5x
        x=5  =  5  =  x = 5.0  !  y=5  !  x=6
        2x+3  =  y=2x+3  =  f(x) = 2x+3  !  y=2x-3
        f(x)=2x  =  2x  =  f(x)=x+x  =  y=2x  !  g(x)=2x  !  f(x)=2  !  f(n)=2n
        a_n=2n-1  =  2n-1  !  a_n=2n+1
        60  =  \angle ABC = 60^\circ  =  m\angle A = 60^\circ  =  \overline{AB} = 60  !  \angle ABC = 61^\circ
        \frac12  =  P(A) = \frac12  =  \frac{AB}{CD} = \frac12  =  \sin A = \frac12  =  \frac12 = 0.5  !  \frac12 = 0.4
        \{1,2\}  =  x \in \{1,2\}  =  x \in \{2,1\}  !  x \in (1,2)
        a+b=5  =  5  =  a + b = 5  =  b+a = 5  !  a-b=5  !  6
        ab=cd  =  cd=ab  !  cd
        x^2+y^2=4  !  4""",  # a name dropped from both sides
    "units": r"""
        8  =  8 \text{ times}  =  8 \text{ ways to choose}  =  8\text{ negative numbers}  =  8 \text{ of them}  !  8 \text{ halves}
        3  !  3 \text{ to } 1  !  3 \text{ squared}  !  3 \text{ thirds}  !  3 \text{ at most}  !  3\text{ with remainder }2  !  3 \text{ for } x>0
        12  !  6 \text{ choose } 2  !  6 \text{ by } 2  !  2 ft 6 in
        60  !  3 \text{ hours } 20 \text{ minutes}
        50\%  =  50  =  0.5  =  50%  =  50 \text{ percent}  =  \frac12  !  5\%  !  0.005
        \frac18  =  12.5\%  !  12\%
        12  =  1200\%  !  0.12  !  1.2
        60^\circ  =  60  =  60°  =  60 \text{ degrees}  =  60^{\circ}  =  \frac{\pi}{3}  !  61^\circ  !  \frac{\pi}{6}
        77  =  77^\circ \text{F}  =  77^\circ F  !  78^\circ F
        77^\circ\text{F}  =  77^{\circ}F  =  77  !  77^\circ\text{C}
        5  =  5 \text{ cm}  =  5 cm  =  5 \text{ cm}^2  =  5\text{ m/s}  =  5 \mathrm{~m} / \mathrm{s}
        5  =  5 \text{ sq. in.}  =  5 units  !  5x  !  6 cm
        5\text{ m}  =  5  =  5 \text{ meters}  !  5 \text{ cm}  !  0.5
        864 \mbox{ inches}^2  =  864  =  864 \text{ square inches}  =  864 \text{ in}^2  !  864 \text{ in}
        12 \text{ hours}  =  12 hours  !  12 \text{ minutes}
        3 \text{ feet/s}  =  3 \text{ feet per second}  !  3 \text{ feet}
        \$5  =  5  =  \$5.00  =  5 \text{ dollars}  =  5\$  !  5 \text{ cents}  !  0.05
        20  =  20 seconds  =  20 \text{ apples}  !  20 \text{ or } 30  !  \text{not } 20""",  # units ignored on both sides
    "order and brackets": r"""
        \{(1,2),(3,4)\}  =  (3,4),(1,2)  !  (1,2)\cup(3,4)
        1,2,2  =  2,1,2  !  1,1,2
        \{x=3k : k\in\mathbb Z\}  !  \{x=2k : k\in\mathbb Z\}
        \begin{pmatrix}-1\\2\end{pmatrix}  =  \begin{pmatrix}-1\\[1ex]2\end{pmatrix}
        (1,2)  =  (1, 2)  =  \left(1,2\right)  =  (x,y)=(1,2)  =  x=1,y=2  =  y=2,x=1  =  1,2  =  \langle 1,2\rangle
        (1,2)  !  (2,1)  !  [1,2]  !  (1,2]  !  \{1,2\}  !  2,1  !  x=2,y=1  !  (1,2,3)
        (1,2,3)  =  [1,2,3]  =  1,2,3  !  (1,3,2)
        (x,y)=(1,2)  =  (1,2)  =  x=1, y=2  =  y=2, x=1  !  (2,1)  !  (x,z)=(1,2)  !  x=2, y=1
        x=1, x=2  =  x=2, x=1  =  1, 2  =  x=1,2  =  x \in \{1,2\}  !  y=1, y=2  !  x=1
        \{1\pm\sqrt5,-2\}  =  x\in\{-2,1+\sqrt5,1-\sqrt5\}  =  x \in \{1\pm\sqrt5,-2\}  !  \{1+\sqrt5,-2\}
        (\frac12,\frac14)  =  (0.5,.25)  !  (0.5,0.3)
        (1,234)  =  (1, 234)  !  1234
        \{1,2\}  =  \{2,1\}  =  \{1,1,2\}  =  1,2  =  1 \text{ and } 2  !  (1,2)  !  \{1\}  !  \{1,2,3\}
        1,2  =  2,1  =  1 or 2  =  2 \text{ and } 1  =  x=1, x=2  =  x=1 \text{ or } x=2  =  x_1=1, x_2=2  =  x = 1, 2
        1,2  =  1;2  !  1  !  1,2,3  !  1,3
        1 \text{ or } 2  =  2, 1  !  (1,2)  !  \begin{pmatrix}1\\2\end{pmatrix}
        540  !  540 or 542  !  540, 542  !  \{540,542\}
        (2,3),(3,2)  =  (3,2),(2,3)  =  \{(2,3),(3,2)\}  !  (2,3)  !  (2,3),(2,3)
        \pm 5  =  5,-5  =  x=\pm5  !  5  !  \pm 4
        2+\sqrt3,2-\sqrt3  =  2\pm\sqrt3  =  x=2\pm\sqrt3  !  2\pm\sqrt2
        x=y=z=3  !  3
        \{2,3,4,\ldots\}  =  \{2, 3, 4, \dots\}  !  \{2,3,5,\dots\}
        2:3  =  4:6  =  2 : 3  =  \frac23  =  2\colon3  !  3:2  !  2:3:4
        2:\sqrt5:\sqrt5  =  2 : \sqrt5 : \sqrt5  !  \sqrt5:2:\sqrt5
        \begin{pmatrix}1&2\\3&4\end{pmatrix}  =  \begin{bmatrix}1&2\\3&4\end{bmatrix}
        \begin{pmatrix}1&2\\3&4\end{pmatrix}  =  \left(\begin{array}{cc}1&2\\3&4\end{array}\right)
        \begin{pmatrix}1&2\\3&4\end{pmatrix}  !  \begin{pmatrix}1&3\\2&4\end{pmatrix}
        \begin{pmatrix}2\\4\end{pmatrix}  =  (2,4)  !  (4,2)
        \begin{pmatrix}2\\4\end{pmatrix}  !  \begin{pmatrix}2&4\end{pmatrix}
        x=1,y=2  =  \begin{cases}x=1\\y=2\end{cases}  =  y=2, x=1  !  x=2,y=1
        \emptyset  =  \varnothing  =  \{\}  !  0  !  \{0\}""",  # sorted tuples; brackets unread; a hedge's last value taken
    "equations and inequalities": r"""
        (0,1)\cup(1,5)  =  x \in (0,5)\setminus\{1\}  =  x\in(0,5), x\ne1  =  0<x<5, x\ne1  !  (0,5)
        (2,5]  =  [0,5]\cap(2,8)  !  [2,5]
        \emptyset  =  (-\infty,0)\cap(5,\infty)  !  (-\infty,0)\cup(5,\infty)
        \mathbb{R}\setminus\{-1,1\}  =  x\ne\pm1  =  x \neq 1, x \neq -1  =  \mathbb{R}\setminus\{\pm1\}  !  \mathbb{R}
        x>3  !  |x-5|<2
        [0,2]  =  [0,1]\cup[1,2]  =  [0,1)\cup[1,2]  !  [0,1)\cup(1,2]
        (-1,0)\cup(0,\infty)  =  x>-1 \text{ and } x\ne0  =  x>-1, x\ne0  !  x>-1 \text{ or } x\ne0
        (-\infty,1)\cup(1,2)\cup(2,\infty)  =  \mathbb R\setminus\{1,2\}  =  \mathbb R\setminus\{2,1\}  =  x\ne1, x\ne2  !  x\ne1
        (1,4)  !  (1,4),(2,3)
        1<x<4  =  (1,4)  !  (1,4),(2,3)
        x>1 \text{ and } y<2  =  y<2 \text{ and } x>1  !  x>1 \text{ or } y<2
        y=2x+3  =  2x-y+3=0  =  2y=4x+6  =  2x+3  =  2x+3=y  !  y=2x-3  !  y = 2x
        x^2+4y^2=4  =  \frac{x^2}{4}+y^2=1  !  4x^2+y^2=4
        (x-1)^2+(y+2)^2=9  =  x^2+y^2-2x+4y-4=0  !  (x+1)^2+(y-2)^2=9
        x>3  =  3<x  =  (3,\infty)  =  2x > 6  =  -x<-3  =  x \in (3,\infty)  =  \{x \mid x>3\}  !  x<3  !  x\ge3
        x>3  !  [3,\infty)  !  3  !  x=3
        x \le 2  =  (-\infty,2]  =  x <= 2  =  x \leqslant 2  !  x<2
        1<x\le2  =  (1,2]  =  x>1 \text{ and } x\le2  =  2 \ge x > 1  =  \{x : 1 < x \leq 2\}  !  [1,2]  !  1\le x<2
        (-\infty,1)\cup(3,\infty)  =  x<1 \text{ or } x>3  =  x<1, x>3  =  (3,+\infty)\cup(-\infty,1)
        (-\infty,1)\cup(3,\infty)  =  x<1 \lor x>3  =  (-\infty,1) U (3,\infty)  !  (1,3)  !  (-\infty,1]\cup(3,\infty)
        [0,2]  =  0 \le x \le 2  !  [0,1]  !  [0,1)\cup(1,2]
        \mathbb{R}  =  (-\infty,\infty)  =  x\in\mathbb R  =  ℝ  =  -\infty<x<\infty  !  x>0  !  \emptyset
        (-\infty,1)\cup(3,\infty)  =  x \in (3,\infty)\cup(-\infty,1)  !  x<1 and x>3  !  (-\infty,1)\cup(3,-\infty)
        (9,4)  !  9<x<4  !  4<x<9
        (0,1)\cup(2,3)  =  0<x<1 \text{ or } 2<x<3  =  (2,3)\cup(0,1)  !  0<x<1, 2<x\le3  !  (0,3)
        x\ne2  =  (-\infty,2)\cup(2,\infty)  =  \mathbb{R}\setminus\{2\}  =  x \neq 2  !  x\ne3  !  x=2
        a+b<c  =  c>a+b  =  2a+2b<2c  !  a+b>c  !  a+b\le c
        k\ge2  =  2\le k  =  [2,\infty)  !  a\ge2
        p\equiv1\pmod4  =  p \equiv 1 (\text{mod } 4)  =  1 \pmod 4  !  p\equiv1\pmod3  !  p\equiv3\pmod4
        \frac{\pi}{4}+k\pi  =  x=\frac{\pi}{4}+k\pi, k\in\mathbb{Z}  =  \frac{\pi}{4}+k\pi \; (k \in \mathbb Z)  !  \frac{\pi}{4}
        \infty  =  +\infty  !  -\infty  !  5""",  # a factor of any sign for inequalities
    "choices and words": r"""
        D  =  (D) P(A \cup B)  =  \text{D. Both A and B}  =  (D) \text{ none of A, B, C}
        True  =  TRUE  =  \text{true}  !  False
        no  =  NO  =  No  !  yes
        A  !  (A) 12 or (B) 13  !  A) 12, B) 13  !  A. no, B
        P(A) = \frac12  =  (B) P(A) = \frac12
        monday  =  MONDAY  =  Monday.  !  mondays off
        C  =  (C)  =  C.  =  \text{C}  =  \text{(C)}  =  \textbf{(C) } 12  =  \mathbf{(C)}  =  Option C  !  D  !  c+1
        C  !  C, D  !  CD
        \textbf{(C) } 12  =  C  =  12  =  (C)  !  B  !  13
        (a)^2b  =  a^2b  =  (a)(ab)  !  A  !  (A)
        A:B=1:2  =  1:2  !  A  !  B=1:2
        12  =  (B) 12  !  (B) 13  !  C
        \text{Yes}  =  yes  !  No
        \text{ellipse}  =  Ellipse  =  \text{an ellipse}  =  \text{ellipses}  !  hyperbola
        \text{no solution}  =  No solutions  !  0
        11:47 \text{ a.m.}  =  11:47  =  11:47 AM  !  11:47 \text{ p.m.}  !  11:48
        (30,92) \text{ OR } (92,30)  =  (92,30) or (30,92)  !  (30,92)
        x  !  X  !  y""",  # choices compared as products of letters
    "times and dates": r"""
        10:50  =  10:50  =  10:50 \text{ a.m.}  !  5:25  !  2:10
        9:00  =  09:00  =  9:00 \text{ p.m.}  !  10:00
        3:00 \text{ p.m.}  =  3:00  =  3:00 P.M.  !  3:00 a.m.  !  3
        4:30  !  4.5  !  9:00
        2:4  =  1:2  =  3:6  !  2:1
        1/2/2000  =  1/2/2000  !  2/4/2000""",
    "words keep their order": r"""
        CDAB  !  ABCD  !  BADC  !  4
        HHT  =  \text{HHT}  !  HTH
        IV  !  VI
        silent  =  Silent  !  listen
        god  !  dog
        AB  =  BA  !  AC
        kn  =  nk  !  k
        SL  =  LS  !  S
        12  =  twelve  =  \text{Twelve}  !  twenty
        \text{no solution}  =  \emptyset  =  No real solutions  !  0
        \mathbf{B}\mathbf{A}  !  \mathbf{A}\mathbf{B}
        \mathbf{a}\times\mathbf{b}  !  \mathbf{b}\times\mathbf{a}""",  # sorted letters; letters multiplied
    "names give the order": r"""
        (2,3)  =  x=2,y=3  =  y=3,x=2  =  p=2,q=3  =  m=2,b=3  =  length=2,width=3  !  m=3,b=2  !  y=2,x=3
        AB=4,CD=5  =  4,5  =  CD=5,AB=4  !  5,4  !  AB=5,CD=4
        x=1,y=2  !  x=1,y=2,z=3  !  x=1,2
        (5,2),(7,2)  =  p=5,q=2;p=7,q=2  =  (p,q)=(5,2)\text{ or }(p,q)=(7,2)  !  p=2,q=5;p=2,q=7
        (1,2),(3,4),(5,6)  !  2,1;4,3;6,5
        (1,2),(2,1)  =  x=1,y=2\text{ or }x=2,y=1  !  x=1,y=2
        a=1,b=2  !  a=1 or b=2
        2x  =  \frac{dy}{dx}=2x  !  \frac{dy}{dx}=3x""",  # names dropped, and with them the order
    "number words": r"""
        5  !  5 \text{ millions}  !  5 \text{ thousands}  !  5 \text{ lakh}  !  5 \text{ crore}  !  5 \text{ sevenths}
        5  !  5 \text{ dozens}  !  5 \text{ tens}  !  5 \text{ almost}  !  5\mathrm{x}  !  5\text{ pi}  !  5 \text{ divided by two}  !  5 \text{ point five}  !  5 \text{ or six}
        3  !  3 quarters  !  3 \text{ halves}  !  three quarters
        5000  =  5 thousand  =  5 \text{ thousands}  =  5 \text{ thousand people}  !  5
        24  =  2 dozen  =  2 \text{ dozen eggs}  !  2""",  # every word is a unit
    "unicode": r"""
        \frac{11}{5}  =  2⅕  =  2 ⅕  !  21/5
        2.5  =  2½  !  21/2
        -5  =  ‐5  =  —5  =  −5
        42  =  4​2  =  ﻿42  =  42。  =  ４２  !  ⁴²
        60  =  60˚  =  60º  =  60°
        (1,2)  =  （1，2）
        \mathbb{Z}  =  ℤ  =  x\in\mathbb{Z}  !  \mathbb{R}
        x^{10}  =  x¹⁰  !  x10""",
    "units, bare and two of them": r"""
        60  =  60 miles per hour  =  60 km/hr  =  60 km per hour  !  61 km/hr
        60 mph  =  60 miles per hour  =  60 \text{ miles/hour}  !  60 \text{ miles}
        5  =  $5 per hour  =  USD 5  =  US$5  =  Rs. 5  =  ¥5  =  ₹5  =  \text{USD }5  =  5€  !  5x
        12  =  12 eggs  =  12 (apples)  =  12 \text{ marbles}  !  12 \text{ eggs or } 13
        2\pi  =  2\pi cm  =  2\pi \text{ cm}  =  2 \pi \text{ square units}  !  2\pi r
        9.8  =  9.8 m/s^2  =  9.8\ \mathrm{m/s^2}
        28\%  =  28 percentage  =  28 per cent  =  28 pct
        2 \text{ hours and } 13 \text{ minutes}  =  2 hours 13 minutes  !  13, 2  !  2, 13
        30.5^\circ  =  30°30'  !  30°
        \$5.00  =  5  !  \$5.004  !  5.01""",  # a unit that is no word of the table
    "commands": r"""
        5  =  \textnormal{5}  =  \textup{5}  =  {\color{red}5}  =  \textcolor{red}{5}  =  \ensuremath{5}  =  \mathnormal{5}
        \frac12  =  \nicefrac{1}{2}  =  \sfrac{1}{2}  =  \cfrac12
        \mathbb{R}  =  \mathbf{R}  =  \Bbb R  =  \text{all real numbers}  =  \text{All reals}
        \mathbb{R}\setminus\{3\}  =  \text{all real numbers except }3  =  x\ne3  !  \mathbb{R}
        \sin x  =  sinx  =  sin(x)  !  \sin y
        |x|  =  abs(x)  !  x
        1500  =  1.5x10^3  =  1.5 x 10^3
        3:2  =  3 to 2  =  6:4  !  2 to 3
        204_5  =  (204)_5  =  204 (base 5)  =  204_{(5)}  !  (204)_6
        255  =  FF_{16}  =  \mathrm{FF}_{16}  !  FE_{16}
        6.25  =  110.01_2  !  110.1_2
        110.01_2  =  110.01  !  11001
        \frac{1}{\cosh x}  =  \operatorname{sech} x  !  \sec(hx)
        \ln(x+\sqrt{x^2+1})  =  \operatorname{arcsinh} x  =  \sinh^{-1} x  !  \arcsin(hx)
        5  =  5 \text{ points}
        1000,1001  =  1,000, 1,001  =  1,000 and 1,001  !  1,000
        (-2,2)  =  |x|<2  =  x^2<4  =  x^{2} < 4  !  x^2\le4  !  |x|\le2  !  x<2
        \pm\sqrt3\pm1  =  \sqrt3+1,-\sqrt3-1  !  \sqrt3+1
        2,3  =  2,2,3  !  2,4,3
        5  =  \text{The answer is } 5  =  Answer: 5  =  \text{Final answer: }5
        \frac{\pi}{4}  =  \frac{\pi}{4}  !  \frac{\pi}{4}+k\pi""",
    "vectors": r"""
        (1+3t,2+4t)  !  (1,2)+t(4,3)
        \begin{cases}x&x\ge0\\-x&x<0\end{cases}  =  \begin{cases}-x&\text{if }x<0\\x&\text{if }x\ge0\end{cases}  !  \begin{cases}x&x<0\\-x&x\ge0\end{cases}""",
    "values": r"""
        0  =  \sin\pi  =  \sqrt7^2-7  !  \frac{0}{\sin\pi}  !  0\tan 90^\circ  !  10^{-40}
        1  !  \frac{\sin\pi}{\sin\pi}  !  (\sin\pi)^0
        x+1  =  \frac{x^2-1}{x-1}  !  \frac{(x+1)\sin\pi}{\sin\pi}""",  # an error bound that grows with the noise
}


def cases():
    for rule, block in RULES.items():
        for line in block.strip().splitlines():
            truth, *rest = [
                part.strip() for part in reward.re.split(r"\s\s([=!])\s\s", line.strip())
            ]
            for sign, answer in zip(rest[::2], rest[1::2], strict=True):
                yield rule, answer, truth, sign == "="


@pytest.mark.parametrize("rule", RULES)
def test_rule(rule):
    wrong = []
    for _, answer, truth, expected in (case for case in cases() if case[0] == rule):
        verdict = judge(f"First $x$, so \\boxed{{{answer}}}.", truth)
        if (verdict.score == 1.0) != expected or verdict.verdict == "crashed":
            wrong.append((answer, truth, expected, verdict))
    assert not wrong


# ---- extraction ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, answer",
    [
        (
            r"\boxed{1}, no: \boxed{\frac{1}{2}}.",
            r"\frac{1}{2}",
        ),  # caught: the first box; a pattern that stops at }
        (r"\fbox{3}", "3"),
        (r"\boxed 7$", "7"),
        (r"\boxed {8}", "8"),
        (r"\\boxed{9}", "9"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{a\}b}", r"a\}b"),  # caught: escaped braces counted
        (r"\boxed{1} <think>\boxed{2}</think> so \boxed{3}", "3"),
        (
            r"<think>\boxed{2}</think> so I do not know",
            None,
        ),  # caught: a box in the thoughts taken for the answer
        (r"\boxed{}", None),
        (r"The answer is 5: \boxed{ }", None),  # caught: an empty box filled from the prose
        (r"\boxed{1} and \boxed{2", "1"),
        (r"\boxed{2", None),
        ("so\n#### 42\n", "42"),
        ("The answer is 7. Bye.", "7"),
        ("Final answer: 3/4", "3/4"),
        ("The answer is 1. Wait, the answer is 2.", "2"),
        (r"The answer is \boxed{4}", "4"),
        ("it is 5", None),
        ("", None),
        ("Answer: 34", "34"),
        ("so x is 3.\n\n**Answer:** $34$", "34$"),
        ("Final Answer:\n5", "5"),
        ("####\n42", "42"),
        ("Answer: 34\nNo, I do not know.", None),  # caught: "Answer:" anywhere
        ("The answer is 42</s>", "42"),
        ("The answer is 42<|im_end|>\n<|im_start|>user", "42"),
        ("The final answer is:\n\\[5\\]", "5\\]"),
        ("The answer is C because of the integral", "C"),
        (r"\boxed{-2} \quad \text{and} \quad \boxed{1}", "-2 and 1"),
        (r"$x=\boxed{3}$ and $x=\boxed{5}$.", "3 and 5"),
        (r"\boxed{540} or \boxed{542}", "540 or 542"),
        (r"\boxed{1}, \boxed{2}", "1 , 2"),
        (r"\boxed{C} and so \boxed{E}", "E"),
        (r"\boxed{9} \boxed{42}", "42"),
        (r"\boxed{42} \boxed{}", None),
        (r"<think>so \boxed{5}", None),
        (r"<answer>7</answer>", "7"),  # caught: an answer in thoughts that never end
    ],
)
def test_extract(text, answer):
    assert extract(text) == answer


@pytest.mark.parametrize(
    "piece",
    [
        "\\",
        "\\boxed{",
        "{",
        "}",
        "\\boxed ",
        "\\boxed{1}",
        " ",
        "answer is ",
        "answer ",
        "####",
        "#### \t",
        "</think>",
        "final answer*",
        "\\\\boxed",
        "* ",
        ". ",
        "\\{",
        "answer is\t",
    ],
)
@pytest.mark.parametrize("before", ["", "\\boxed{1} ", "\\boxed", "answer is ", "####"])
def test_extract_is_linear(before, piece):
    # Caught: \\+ before "boxed", which reads 10^6 backslashes once from each of them, for hours.
    text = before + piece * (10**6 // len(piece))
    began = time.thread_time()
    extract(text)
    assert time.thread_time() - began < 20


# ---- bounds and verdicts ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer, truth, verdict",
    [
        ("5", "5", "right"),
        ("6", "5", "wrong"),
        (r"\text{}", "5", "no_answer"),
        ("?", "5", "no_answer"),
        ("((5", "5", "unparsed"),
        (r"\sqrt{", "5", "unparsed"),
        ("1+" * 2000 + "1", "5", "too_large"),
        ("(" * 100 + "5" + ")" * 100, "5", "too_large"),
        ("9" * 1500, "5", "wrong"),
        ("9e99999", "5", "wrong"),
        ("x+" * 1400 + "x", "y", "too_large"),
        ("2^{10^{10}}", "5", "wrong"),
        ("10^{10^{10^{10}}}", "5", "too_large"),
        ("(10^{10})!", "5", "wrong"),  # never written out
        ("9!!!!", "5", "wrong"),
        (r"\binom{10^9}{10^8}", "5", "wrong"),
        (",".join("12" * 150), "5", "too_large"),
        (r"\binom{10^{20}}{2}", "5", "too_large"),
        (r"(x+1)^{10^{9}}", "x", "wrong"),
        ("1<(" * 30 + "x" + ")<2" * 30, "5", "wrong"),
        ("(" * 30 + "x" + r")\ne 1" * 30, "5", "wrong"),
        (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}" * 30, "5", "unparsed"),
        ("a. " * 900, "5", "unparsed"),
        ("x_", "5", "unparsed"),
    ],
)
def test_verdicts_and_bounds(answer, truth, verdict):
    began = time.thread_time()
    closed = answer.count("{") == answer.count("}")
    found = judge(f"\\boxed{{{answer}}}", truth) if closed else reward.judge_answer(answer, truth)
    assert (found.verdict, found.score) == (verdict, float(verdict == "right"))
    assert time.thread_time() - began < 2 * reward.SECONDS


PATTERNS = r"""{ ( (mod \text{ " 0.3 1,000, \frac1 \frac{1} ^ _{ \mathbf{A} \over {1\over
    \for "\ for \begin{a} a.m. p. sq \R\ except
    ° \circ 10^ |x|< \\ \ .333 x_1= ± \pm1 5cm eggs\ 2hours $ 5$ f( \sin √ | ⌊ ! \left( 1/ -
    A Ab the\ x= < ∪ :1 base3 to\ answer:
    ,\  ; and\ or\ (1,2)\cup \boxed{ 1\  . 9""".split()


@pytest.mark.parametrize("piece", ["(mod" + " " * 2900, *PATTERNS])
def test_every_pattern_is_linear(piece):
    # Caught: a pattern that reads a run once from each of its characters.
    # Caught: a deadline that matching does not see.
    run = (piece * 3000)[:2990]
    for answer, truth in (
        (run, "5"),
        ("5", run),
        (run + "5", "5" + run),
        (f"5{run[:1400]}", f"{run[:1400]}5"),
    ):
        began = time.thread_time()
        assert reward.judge_answer(answer, truth).verdict != "crashed"
        assert time.thread_time() - began < 3 * reward.SECONDS


def test_long_lists_are_matched():
    # Caught: unordered matching that compares every item with every other.
    intervals = [f"({2 * i},{2 * i + 1})" for i in range(150)]
    assert equal(r"\cup".join(reversed(intervals)), r"\cup".join(intervals))
    roots, others = (
        [form.replace("n", str(n)) for n in range(2, 180)] for form in (r"\sqrt{n}", "n^{.5}")
    )
    assert equal(",".join(reversed(others)), ",".join(roots))
    assert not equal(",".join([*others[1:], "1"]), ",".join(roots))


def test_time_and_faults_have_verdicts(monkeypatch):
    assert judge("I give up", "5") == reward.Verdict(
        0.0, "no_answer", None, "no final answer found"
    )
    monkeypatch.setattr(reward, "SECONDS", 0.0)
    assert judge(r"\boxed{\sqrt{12}}", r"2\sqrt{3}").verdict == "timeout"
    monkeypatch.setattr(
        reward, "algebra", lambda *_: 1 / 0
    )  # caught: a fault of ours that stops the run
    found = judge(r"\boxed{\sqrt{12}}", r"2\sqrt{3}")
    assert (found.score, found.verdict) == (0.0, "crashed") and "ZeroDivisionError" in found.rule


PLANTED = [
    r"__import__('os').system('touch harmed')",
    r"open('harmed','w').write('1')",
    "exec('open(1)')",
    "eval('1+1')",
    "().__class__.__bases__[0].__subclasses__()",
    r"\text{__import__('os').mkdir('harmed')}",
    "lambda: 0",
    "x.__init__.__globals__",
    r"\input{/etc/passwd}",
    r"\write18{touch harmed}",
    "$(touch harmed)",
    "`touch harmed`",
    "'; touch harmed; '",
    "S('open(1)')",
    "Symbol('x').__class__",
    "[x for x in (1,2)]",
    "f'{1}'",
    "print(1)",
    "sympify('1')",
]


def test_no_answer_is_executed(tmp_path):
    # Caught: eval, sympify, parse_expr or a shell anywhere: the interpreter's audit names every
    # compile, exec, open and spawn.
    program = """
import json, sys
import reward
reward.score("\\\\boxed{\\\\sqrt{8}}", "2\\\\sqrt{2}")  # imports what is imported late
seen = []
sys.addaudithook(lambda event, _: seen.append(event) if event.split(".")[0] in
                 ("compile", "exec", "open", "os", "subprocess", "socket", "import", "code",
                  "shutil", "pty") else None)
planted = json.loads(sys.argv[1])
found = [reward.score(f"\\\\boxed{{{text}}}", truth)
         for text in planted for truth in ("49", "2", "x", text[::-1])]
print(json.dumps([sum(found), sorted(set(seen))]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(PLANTED)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert json.loads(done.stdout) == [0, []], done.stderr
    assert list(tmp_path.iterdir()) == []


# ---- random expressions -------------------------------------------------------------------------
# An expression is a whole number, a letter, ("+", a, b), ("*", a, b), ("/", a, b), ("^", a, n)
# or ("sqrt", a).

expressions = st.recursive(
    st.integers(-9, 9) | st.sampled_from("xyab"),
    lambda inner: (
        st.tuples(st.sampled_from("+*/"), inner, inner)
        | st.tuples(st.just("^"), inner, st.integers(2, 3))
        | st.tuples(st.just("sqrt"), inner)
    ),
    max_leaves=8,
)
PROPERTY = settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


def value(tree, point):
    if not isinstance(tree, tuple):
        return complex(point[tree] if isinstance(tree, str) else tree)
    a, *rest = (value(x, point) for x in tree[1:])
    return {
        "+": lambda: a + rest[0],
        "*": lambda: a * rest[0],
        "/": lambda: a / rest[0],
        "^": lambda: a ** tree[2],
        "sqrt": lambda: a**0.5,
    }[tree[0]]()


def values(tree):
    """At a few points, without reward.py's arithmetic; an example without values is dropped."""
    found = []
    for point in (
        {"x": 1.7, "y": 2.3, "a": 0.6, "b": 3.1},
        {"x": 0.4, "y": 5.2, "a": 2.9, "b": 1.3},
    ):
        try:
            found.append(value(tree, point))
        except (ZeroDivisionError, OverflowError):
            assume(False)
        assume(abs(found[-1]) < 1e6 and abs(found[-1].imag) < 1e-12)
    return found


def differ(left, right):
    """So clearly that it is no matter of rounding."""
    return any(
        abs(a - b) > 1e-4 * (1 + abs(a)) for a, b in zip(values(left), values(right), strict=True)
    )


def latex(tree):
    if not isinstance(tree, tuple):
        return f"({tree})" if str(tree).startswith("-") else str(tree)
    a, b = latex(tree[1]), latex(tree[2]) if len(tree) > 2 else ""
    return {
        "+": f"({a}+{b})",
        "*": rf"{a} \cdot {b}",
        "/": rf"\frac{{{a}}}{{{b}}}",
        "^": f"({a})^{{{tree[-1]}}}",
        "sqrt": rf"\sqrt{{{a}}}",
    }[tree[0]]


def rewritten(tree, draw):
    """The same in another order and spelling, some powers and products written out."""
    if not isinstance(tree, tuple):
        return draw.choice([f"({tree})", f"{{{tree}}}", rf"\left( {tree} \right)"])
    kind, left = tree[0], tree[1]
    if kind == "*" and isinstance(left, tuple) and left[0] == "+" and draw.random() < 0.7:
        return rewritten(("+", ("*", tree[2], left[1]), ("*", left[2], tree[2])), draw)
    if kind == "^" and draw.random() < 0.7:
        return rewritten(("*", left, ("^", left, tree[2] - 1) if tree[2] > 2 else left), draw)
    a, b = rewritten(left, draw), rewritten(tree[2], draw) if len(tree) > 2 else ""
    if kind in "+*" and draw.random() < 0.5:
        a, b = b, a
    return {
        "+": [f"({a}+{b})", f"( {a} - (-{b}))"],
        "*": [f"({a})({b})", rf"({a}) \times ({b})", f"({a})*({b})"],
        "/": [f"(({a})/({b}))", rf"\dfrac{{{a}}}{{{b}}}", rf"({a})({b})^{{-1}}"],
        "^": [f"({a})^{tree[-1]}", f"({a})^{{{tree[-1]}}}"],
        "sqrt": [rf"\sqrt{{{a}}}", rf"({a})^{{1/2}}", rf"{{({a})}}^{{\frac12}}"],
    }[kind][draw.randrange(2)]


def changed(tree, draw):
    """One coefficient, sign or bracket changed somewhere."""
    if not isinstance(tree, tuple) or draw.random() < 0.25:
        return draw.choice([("+", tree, 1), ("*", 2, tree), ("*", -1, tree)])
    if tree[0] == "*" and isinstance(tree[2], tuple) and tree[2][0] == "+" and draw.random() < 0.5:
        return ("+", ("*", tree[1], tree[2][1]), tree[2][2])  # a(b + c) -> ab + c
    return (tree[0], changed(tree[1], draw), *tree[2:])


@PROPERTY
@given(expressions, st.integers(0, 10**6))
def test_rewritten_is_equal(tree, seed):
    # Caught: a precedence, a spelling or a law of arithmetic that is wrong.
    values(tree)
    text, other = latex(tree), rewritten(tree, random.Random(seed))
    assert equal(other, text) and equal(text, other), (other, text)
    assert equal(text.replace("\\", "\\\\"), text) and equal(f"${text}$.", text)


@PROPERTY
@given(expressions, st.integers(0, 10**6))
def test_changed_is_not_equal(tree, seed):
    # Caught: equality by too few points or with a loose tolerance, signs or factors lost.
    other = changed(tree, random.Random(seed))
    assume(differ(tree, other))
    assert not equal(latex(other), latex(tree)), (latex(other), latex(tree))


@PROPERTY
@given(st.integers(-50, 50), st.integers(1, 50), st.sampled_from("(["), st.sampled_from(")]"))
def test_intervals_are_equal_with_their_brackets_only(low, length, opening, closing):
    high, signs = low + length, {"(": "<", "[": r"\le", ")": "<", "]": r"\le"}
    truth = f"{opening}{low}, {high}{closing}"
    assert equal(rf"{low} {signs[opening]} x {signs[closing]} {high}", truth)
    assert equal(rf"\left{opening}{low},{high}\right{closing}", truth)
    for wrong in (
        f"{'[('[opening == '[']}{low}, {high}{closing}",
        f"{opening}{low}, {high}{'])'[closing == ']']}",
        f"{opening}{low}, {high + 1}{closing}",
        f"{opening}{-high}, {-low}{closing}" if low != -high else "5",
    ):
        assert not equal(wrong, truth), (wrong, truth)


ROW = st.sampled_from([truth for _, _, truth, _ in cases()])


@PROPERTY
@given(ROW, st.integers(0, 10**6))
def test_spaces_and_dollar_signs_do_not_matter(truth, seed):
    draw = random.Random(seed)
    assert (
        equal(truth, truth)
        and reward.algebra(reward.clean(truth), reward.clean(truth))[0] == "right"
    )
    spaced = f" $ {truth}$ " if "$" not in truth else f"  {truth} "
    assert equal(spaced, truth) and equal(truth, spaced)
    at = [i for i, c in enumerate(truth) if c in "+=,&" and truth[i - 1 : i] != "\\"]
    if at and not reward.THOUSANDS.search(truth):
        place = draw.choice(at)
        assert equal(f"{truth[:place]} {truth[place]} {truth[place + 1 :]}", truth)


@PROPERTY
@given(st.text(max_size=200), st.text(max_size=200))
def test_any_text_has_a_verdict(text, truth):
    began = time.thread_time()
    assert reward.judge(f"\\boxed{{{text}}}", truth).verdict in VERDICTS - {"crashed", "timeout"}
    assert reward.judge_answer(text, text).verdict in ("right", "no_answer")
    assert time.thread_time() - began < 3 * reward.SECONDS


PIECES = r"""\frac \sqrt { } ( ) [ ] \{ \} ^ _ | ! % & \\ , ; : . + - * / = < \le \in \cup \pm x y e
    i 0 1 2 17 99999 \pi \infty
    \begin{pmatrix} \end{pmatrix} \text{ or and \boxed{ $ \sin \log \binom \lfloor \rfloor \ldots ° '
    \overline \pmod cm \mathbb{R} é ∞ \left \right
    \cdot""".split()


ANSWERS = [answer for _, answer, _, _ in cases()]


@settings(PROPERTY, max_examples=300)
@given(
    st.lists(st.sampled_from(PIECES), max_size=40).map("".join)
    | st.lists(st.sampled_from(PIECES + ANSWERS), max_size=6).map("".join)
    | st.text(max_size=60)
    | st.binary(max_size=80).map(lambda raw: raw.decode("latin-1")),
    st.sampled_from([truth for _, _, truth, _ in cases()]),
    st.integers(0, 10**6),
)
def test_nothing_raises(noise, truth, seed):
    # Caught: any exception that is not ours ("crashed" is a fault of the checker), any slow path.
    draw = random.Random(seed)
    at, drop = draw.randrange(len(truth) + 1), draw.randrange(3)
    for answer in (noise, truth[:at] + noise[:5] + truth[at + drop :], truth[::-1]):
        for pair in ((answer, truth), (truth, answer)):
            began = time.thread_time()
            found = reward.judge_answer(*pair)
            assert found.verdict in VERDICTS - {"crashed", "timeout"}, (pair, found)
            assert found.score == (found.verdict == "right")
            assert time.thread_time() - began < 3 * reward.SECONDS, pair
        score(answer, truth)


# ---- the pool -----------------------------------------------------------------------------------


def algebraic(n):
    """An answer and a truth that only a worker decides."""
    return rf"\boxed{{\sqrt{{{n * n * 2}}}}}", rf"{n}\sqrt{{2}}"


@pytest.fixture
def started(monkeypatch):
    """The worker processes, as they are started."""
    found, start = [], subprocess.Popen
    monkeypatch.setattr(
        reward.subprocess,
        "Popen",
        lambda *args, **more: found.append(start(*args, **more)) or found[-1],
    )
    return found


def test_grade_keeps_order_and_threads_may_share(started):
    texts, truths = zip(
        *(algebraic(n) if n % 3 else (rf"\boxed{{{n}}}", str(n + n % 2)) for n in range(1, 40)),
        strict=True,
    )
    with Grader(workers=2) as grader:
        found = [[] for _ in range(3)]
        threads = [
            threading.Thread(target=lambda i=i: found[i].extend(grader.grade(texts, truths)))
            for i in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(started) == 2
        with pytest.raises(ValueError, match="zip"):
            grader.grade(texts, truths[1:])
    expected = [judge(*pair) for pair in zip(texts, truths, strict=True)]
    assert {v.verdict for v in expected} == {"right", "wrong"} and found == [expected] * 3
    assert all(worker.poll() == 0 for worker in started)  # caught: workers left behind
    with pytest.raises(RuntimeError, match="after shutdown"):
        grader.submit(*algebraic(2))
    with pytest.raises(ValueError, match="positive"):
        Grader(workers=0)


def test_a_worker_that_hangs_or_dies_is_replaced(started):
    with Grader(timeout_s=0.5) as grader:
        assert grader.grade(*zip(algebraic(2), strict=True))[0].verdict == "right"
        os.kill(started[0].pid, signal.SIGSTOP)  # caught: no alarm, so that the run waits for ever
        assert grader.submit(*algebraic(3)).result(20).verdict == "timeout"
        assert grader.submit(*algebraic(4)).result(20).verdict == "right"
        os.kill(started[1].pid, signal.SIGSTOP)
        waiting = grader.submit(*algebraic(5))
        time.sleep(0.1)
        os.kill(started[1].pid, signal.SIGKILL)  # in the middle of an answer
        assert waiting.result(20).verdict == "crashed" and waiting.result().score == 0.0
        assert grader.submit(*algebraic(6)).result(20).verdict == "right"
        os.kill(started[2].pid, signal.SIGKILL)  # between two answers: nothing is lost
        started[2].wait()
        assert grader.submit(*algebraic(7)).result(20).verdict == "right"
    assert len(started) == 4
    with Grader() as grader:
        grader.command = ["/no/such/program"]  # caught: a thread that ends with its task unanswered
        assert [grader.submit(*algebraic(2)).result(20).verdict for _ in range(2)] == [
            "crashed"
        ] * 2


SLEEPY = """
import time
def slow(completion, problem):
    print("this must not be taken for a verdict")
    time.sleep(float(completion))
    return float(problem["answer"])
def fails(completion, problem):
    return problem["missing"]
def infinite(completion, problem):
    return float("inf")
"""


@pytest.fixture
def sleepy(tmp_path):
    """A file of user rewards: `slow` sleeps for as many seconds as the completion says."""
    file = tmp_path / "sleepy.py"
    file.write_text(SLEEPY)
    return str(file)


def test_lost_workers_leave_nothing(started, sleepy):
    # Caught: one process that is never waited for, and two open pipes, for each time-out.
    with Grader(timeout_s=0.05, reward=f"{sleepy}:slow") as grader:
        assert grader.submit("9", {"answer": 1}).result(60).verdict == "timeout"
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(5):
            assert grader.submit("9", {"answer": 1}).result(60).verdict == "timeout"
        assert len(os.listdir("/proc/self/fd")) == before
        assert len(started) == 6 and all(worker.returncode is not None for worker in started)


def test_a_user_reward_is_graded_in_the_workers(sleepy):
    @dataclasses.dataclass
    class Problem:
        prompt: str
        answer: str

    with Grader(reward=f"{sleepy}:slow") as grader:
        found = grader.grade(["0", "0"], [Problem("", "0.25"), {"answer": -1}])
        assert [(v.score, v.verdict) for v in found] == [(0.25, "graded"), (-1.0, "graded")]
        assert (
            grader.submit("0" * 10**6, {"answer": 1}).result(60).score == 1.0
        )  # more than a pipe holds
    for name, message in (
        ("fails", "KeyError"),
        ("infinite", "returned inf"),
        ("absent", "KeyError"),
    ):
        with Grader(reward=f"{sleepy}:{name}") as grader:
            found = grader.submit("0", {"answer": 1}).result(60)
            assert (found.score, found.verdict) == (0.0, "crashed") and message in found.rule
    with pytest.raises(ValueError, match="no such file or function"):
        Grader(reward="/no/such/file.py:score")


def test_a_request_to_a_worker_that_does_not_read_has_a_limit(started, sleepy):
    with Grader(timeout_s=0.5, reward=f"{sleepy}:slow") as grader:
        assert grader.submit("0", {"answer": 1}).result(60).score == 1.0
        os.kill(started[0].pid, signal.SIGSTOP)  # caught: a write that blocks for ever
        assert grader.submit("0" * 10**6, {"answer": 1}).result(60).verdict == "timeout"


def test_starts_and_ends_have_limits(started, monkeypatch):
    monkeypatch.setattr(reward, "START_S", 0.2)
    with Grader() as grader:
        grader.command = ["sleep", "60"]  # caught: waiting for ever for a worker's first line
        found = grader.submit(*algebraic(2)).result(20)
        assert found.verdict == "crashed" and "did not start" in found.rule
    monkeypatch.setattr(reward, "START_S", 60.0)
    with Grader() as grader:
        assert grader.submit(*algebraic(2)).result(60).verdict == "right"
        os.kill(started[-1].pid, signal.SIGSTOP)  # caught: a close that waits for ever
    assert all(worker.returncode is not None for worker in started)


def test_workers_end_with_their_parent(tmp_path, sleepy):
    # Caught: a worker that outlives the run by as long as its answer takes.
    script = tmp_path / "parent.py"
    script.write_text(
        "import reward, time\n"
        f"grader = reward.Grader(timeout_s=99, reward={sleepy + ':slow'!r})\n"
        "grader.submit('99', {'answer': 1})\n"
        "while not grader.workers: time.sleep(0.01)\n"
        "print(*(w.pid for w in grader.workers), flush=True)\n"
        "time.sleep(99)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    worker = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    for _ in range(1000):
        status = Path(f"/proc/{worker}/stat")
        if not status.exists() or status.read_text().split()[2] == "Z":
            return
        time.sleep(0.02)
    os.kill(worker, signal.SIGKILL)
    raise AssertionError("the worker outlives its parent")


def test_answers_are_compared_in_the_workers(started):
    with Grader(workers=2) as grader:
        assert grader.equal(
            [(r"\sqrt{8}", r"2\sqrt{2}"), ("3", "4"), ("5", "5"), (r"\sqrt{8}", "3")]
        ) == [True, False, True, False]
        assert 1 <= len(started) <= 2  # caught: maj@k that hangs the main process


def test_memory_of_a_worker_is_limited(tmp_path, started):
    hungry = tmp_path / "hungry.py"  # the worker's own loop around a judge that wants 1 GB
    hungry.write_text(
        "import sys, reward\nfair = reward.judge_answer\n"
        "reward.judge_answer = lambda a, t: fair(a, t) if '2' in a else len(bytearray(2**30))\n"
        "reward.serve(float(sys.argv[2]))\n"
    )
    os.environ["PYTHONPATH"], before = str(ROOT), os.environ.get("PYTHONPATH")
    try:
        with Grader(memory_gb=0.25) as grader:
            grader.command[1] = str(hungry)
            verdicts = [
                grader.submit(answer, r"2\sqrt2").result(20).verdict
                for answer in (r"\boxed{\sqrt{3}}", r"\boxed{2\sqrt{2}}")
            ]
    finally:
        os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)
    assert verdicts == ["crashed", "right"]


def test_workers_import_no_torch(tmp_path):
    # Caught: a pool of multiprocessing, which imports the caller's script, and with it torch.
    (tmp_path / "torch.py").write_text("import os\nprint('torch', os.getpid(), flush=True)\n")
    (tmp_path / "train.py").write_text(
        "import torch, reward\nwith reward.Grader(2) as grader:\n"
        f"    print([v.score for v in grader.grade(*zip({algebraic(2)}, {algebraic(3)}))])\n"
    )
    done = subprocess.run(
        [sys.executable, "train.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
    )
    assert done.stdout.count("torch") == 1 and done.stdout.endswith("[1.0, 1.0]\n"), (
        done.stdout + done.stderr
    )


# ---- the command line ---------------------------------------------------------------------------


def test_the_command_explains(monkeypatch, capsys):
    monkeypatch.setattr(
        sys, "argv", ["reward.py", "--answer", "so \\boxed{\\sqrt 8}\x1b[2J", "--truth", r"2\sqrt2"]
    )
    reward.main()
    shown = capsys.readouterr().out
    assert (
        "read as  sqrt(8)   and   2*sqrt(2)\n" in shown
        and "right" in shown
        and "300 digits" in shown
    )
    monkeypatch.setattr(
        sys, "argv", ["reward.py", "--answer", "\\boxed{1,000}\x1b[2J", "--truth", "1001"]
    )
    reward.main()
    shown = capsys.readouterr().out
    assert (
        "\x1b" not in shown and "read as  1000   and   1001\n" in shown
    )  # caught: the reading of a list of 1 and 0


# ---- published collections ----------------------------------------------------------------------


def lines(name):
    return [
        json.loads(line)
        for line in (Path(SCALING_DATA) / "checker" / f"{name}.jsonl")
        .read_text("utf-8")
        .splitlines()
    ]


@pytest.mark.skipif(not SCALING_DATA, reason="SCALING_DATA names no folder with checker/")
def test_labelled_cases():
    labelled = [case for case in lines("cases_dev") if not case["kind"].startswith("x:")]
    wrong = [
        case for case in labelled if score(case["completion"], case["gold"]) != case["expected"]
    ]
    assert len(labelled) > 250 and len(wrong) <= 0.01 * len(labelled), wrong
    assert not [case for case in wrong if case["expected"] == 0], wrong


@pytest.mark.skipif(not SCALING_DATA, reason="SCALING_DATA names no folder with checker/")
def test_cases_of_public_reports():
    cases = lines("reports_dev")
    wrong = [case for case in cases if score(case["completion"], case["gold"]) != case["expected"]]
    assert len(cases) > 700 and len(wrong) <= 0.05 * len(cases), wrong
    assert sum(case["expected"] == 0 for case in wrong) <= 5, wrong


@pytest.mark.skipif(not SCALING_DATA, reason="SCALING_DATA names no folder with checker/")
def test_hostile_cases():
    for case in lines("adversarial_dev"):
        began = time.thread_time()
        found = judge(case["completion"], case["gold"])
        assert (
            time.thread_time() - began < 2
            and found.verdict != "crashed"
            and case["expected"] in (None, found.score)
        ), case


@pytest.mark.skipif(not SCALING_DATA, reason="SCALING_DATA names no folder of problem sets")
def test_every_truth_of_the_study_equals_itself():
    import data

    files = [
        path
        for path in Path(SCALING_DATA, "data").glob("*/*math*.parquet")
        if "deepscaler" not in path.name
    ]
    truths = sorted({p.answer for path in files for p in data.load(str(path))[0] if p.kind == "math"})
    assert len(truths) > 3000
    assert not [truth for truth in truths if not equal(truth, truth)]
    unread = []
    for truth in truths:
        text = reward.clean(truth)
        verdict, rule, _ = reward.algebra(text, text)  # not by the string
        if "cannot be read" in rule:
            unread.append(truth)
        else:
            assert verdict == "right", (truth, rule)
    assert len(unread) <= 0.001 * len(truths), unread
